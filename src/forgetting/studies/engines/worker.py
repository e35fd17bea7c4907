"""A process that an engine started on this machine: it does tasks from a pipe, and ends with its parent."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType

from ...display.streams import make_safe
from ...errors import ForgettingError
from ...tuning import stopping
from .base import Event, Hear, PipeEnd, Work


class WorkerProcess:
    """This process. Asked to stop, it does so at the next step of its task, and at once between two tasks."""

    def __init__(self, pipe: PipeEnd, threads: int, parent: int) -> None:
        """Take over the signals and streams, and watch the parent.

        Args:
            pipe: to the parent.
            threads: CPU threads of this process.
            parent: id of the process that started this one.
        """
        self.pipe, self.busy = pipe, False
        make_safe()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; our parent tells us
        signal.signal(signal.SIGTERM, self._stop)
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
        set_threads(threads)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if not self.busy:
            os._exit(0)
        stopping.request(number)

    def tasks(self) -> Iterator[str]:
        """Tasks from the pipe until there are none."""
        while (task := self.pipe.recv()) is not None:
            self.busy = True
            yield task
            self.busy = False

    def tell(self, error: Exception) -> None:
        """Send an error to the parent."""
        known = isinstance(error, ForgettingError)
        with suppress(OSError):
            self.pipe.send(error if known else ForgettingError(f"{type(error).__name__}: {error}"))


def one_task(task: str, work: Work, tell: Hear) -> None:
    """Do a task, telling its start, each step and its end."""
    tell(Event(task, "started"))
    work(task, lambda step: tell(Event(task, "step", step)))
    tell(Event(task, "ended"))


def set_threads(threads: int) -> None:
    """CPU threads of this process; torch, where it is not loaded yet, will read them when it is."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _die_with(parent: int) -> None:
    """End this process when its parent is gone: an orphan would go on writing to a study that someone resumes."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)

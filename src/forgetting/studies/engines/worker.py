"""A worker process of an engine on this machine; it executes tasks from a pipe and ends with its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from types import FrameType

from ...display.streams import make_safe
from ...errors import ForgettingError
from ...tuning import stopping
from .base import Event, Hear, PipeEnd, Work

if sys.platform == "win32":
    Context = SpawnContext
else:
    from multiprocessing.context import ForkServerContext

    Context = SpawnContext | ForkServerContext

SIGKILL = getattr(signal, "SIGKILL", 9)
"""Windows does not define it."""


class WorkerProcess:
    """The worker in this process. A request to stop ends it at the next step of its task, or at once without a task."""

    def __init__(self, pipe: PipeEnd, threads: int | None) -> None:
        """Set up signals, streams and threads, and watch the parent.

        Args:
            pipe: this process's end of the pipe to the parent.
            threads: CPU threads of this process; None leaves their number unchanged.
        """
        self.pipe, self.busy = pipe, False
        make_safe()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process too, but the parent handles it
        signal.signal(signal.SIGTERM, self._stop)
        threading.Thread(target=_die_with_parent, daemon=True).start()
        if threads is not None:
            set_threads(threads)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if not self.busy:
            os._exit(0)
        stopping.request(number)

    def tasks(self) -> Iterator[str]:
        """Yield tasks from the pipe until told to end."""
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
    """Execute a task and report its start, each step and its end."""
    tell(Event(task, "started"))
    work(task, lambda step: tell(Event(task, "step", step)))
    tell(Event(task, "ended"))


def ending(process: BaseProcess) -> str:
    """How a process ended, in words."""
    code = process.exitcode
    if code is None or code >= 0:
        return f"exit code {code}"
    if code == -SIGKILL:
        return "killed, probably because memory ran out"
    return f"signal {-code}"


def set_threads(threads: int) -> None:
    """Set the CPU threads of this process; if torch is not imported yet, it reads them when it is."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _die_with_parent() -> None:
    """End this process when its parent is gone, as it might otherwise write to a study that was resumed elsewhere."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

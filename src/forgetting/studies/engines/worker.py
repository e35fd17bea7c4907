"""A process that an engine started on this machine: it does tasks from a pipe, and ends with its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.context import SpawnContext
from pathlib import Path
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

_LIBRARIES = [
    *("forgetting.studies.execute", "forgetting.tuning.run", "transformers.models.auto.modeling_auto"),
    "forgetting.studies.engines.shared_memory",
]
"""What a server of forks imports for all workers; last, what keeps it shared."""
_WITHOUT_WEIGHT = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "CUDA_VISIBLE_DEVICES", "PYTEST_CURRENT_TEST")
"""May differ from the server's: threads are set again and have none to wait for, no accelerator is here, and no library
reads a test's name."""
_server: tuple[dict[str, str], Path] | None = None
"""Environment and folder in which this process began its server of forks."""


def worker_context() -> Context:
    """How to start worker processes on the CPU.

    They are forked from a server that imported the libraries once, so that eight of them share that memory and begin at
    once. Spawned are those of other systems than Linux, those beside an accelerator, whose driver a fork may not have
    touched, and those in an environment that is no longer the server's: libraries read it when they are imported.
    """
    global _server
    import torch

    if not sys.platform.startswith("linux") or torch.accelerator.is_available():
        return multiprocessing.get_context("spawn")
    environment = {name: value for name, value in os.environ.items() if name not in _WITHOUT_WEIGHT}
    try:
        now = environment, Path.cwd()
    except OSError:  # the folder is gone
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    if _server is None:
        context.set_forkserver_preload(_LIBRARIES)
        _server = now
    return context if _server == now else multiprocessing.get_context("spawn")


class WorkerProcess:
    """This process. Asked to stop, it does so at the next step of its task, and at once between two tasks."""

    def __init__(self, pipe: PipeEnd, threads: int) -> None:
        """Take over the signals and streams, and watch the parent.

        Args:
            pipe: to the parent.
            threads: CPU threads of this process.
        """
        self.pipe, self.busy = pipe, False
        make_safe()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; our parent tells us
        signal.signal(signal.SIGTERM, self._stop)
        threading.Thread(target=_die_with_parent, daemon=True).start()
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


def _die_with_parent() -> None:
    """End this process when its parent is gone: an orphan would go on writing to a study that someone resumes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""Run tasks on this machine: in this process, or in several spawned ones that die with it."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from ..errors import ForgettingError


@dataclass(frozen=True)
class Event:
    """Something that happened to a task: it started, finished a step, or ended."""

    task: str
    kind: Literal["started", "step", "ended"]
    step: int = 0
    worker: int = 0


Tell = Callable[[int], None]
Work = Callable[[str, Tell], None]
"""Does one task, telling each finished step; records its own failures, so that an exception means a broken engine."""


def execute(
    tasks: Sequence[str], work: Work, *, workers: int, threads: int, on_event: Callable[[Event], None]
) -> list[str]:
    """Do all tasks, `workers` at a time.

    Args:
        tasks: names, done in this order.
        work: does one; must be picklable where workers > 1.
        workers: processes; 1 stays in this one.
        threads: CPU threads of each worker.
        on_event: called in this process with what happens.

    Returns:
        Tasks whose worker died without a word (killed, out of memory).
    """
    if workers == 1 or len(tasks) < 2:
        _set_threads(threads)
        for task in tasks:
            _one(task, work, on_event, worker=0)
        return []
    return _Pool(tasks, work, min(workers, len(tasks)), threads, on_event).run()


def _one(task: str, work: Work, tell: Callable[[Event], None], worker: int) -> None:
    tell(Event(task, "started", worker=worker))
    work(task, lambda step: tell(Event(task, "step", step, worker)))
    tell(Event(task, "ended", worker=worker))


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


class _Pool:
    """Spawned workers that take tasks from one queue and tell events through another."""

    def __init__(
        self, tasks: Sequence[str], work: Work, workers: int, threads: int, on_event: Callable[[Event], None]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.tasks: Any = context.Queue()
        self.events: Any = context.Queue()
        self.on_event = on_event
        self.held: dict[int, str] = {}
        self.died: list[str] = []
        for task in [*tasks, *[None] * workers]:
            self.tasks.put(task)
        self.processes: dict[int, BaseProcess] = {
            i: context.Process(
                target=_serve, args=(i, work, self.tasks, self.events, threads, os.getpid()), daemon=True
            )
            for i in range(workers)
        }

    def run(self) -> list[str]:
        for process in self.processes.values():
            process.start()
        try:
            while self.processes:
                self._drain(timeout=0.2)
                self._reap()
            self._drain(timeout=0)
        finally:
            for process in self.processes.values():
                process.terminate()
            for process in self.processes.values():
                process.join(timeout=10)
        return self.died

    def _drain(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                event = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                return
            if event.kind == "started":
                self.held[event.worker] = event.task
            elif event.kind == "ended":
                self.held.pop(event.worker, None)
            self.on_event(event)

    def _reap(self) -> None:
        """Forget workers that ended; a task that a dead one held is reported, the others go on."""
        for i, process in list(self.processes.items()):
            if process.is_alive():
                continue
            self._drain(timeout=0.05)
            del self.processes[i]
            if process.exitcode != 0:
                if i not in self.held:
                    raise ForgettingError(
                        f"a worker process ended with exit code {process.exitcode} before its first run"
                    )
                self.died.append(self.held.pop(i))


def _serve(index: int, work: Work, tasks: Any, events: Any, threads: int, parent: int) -> None:
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    _set_threads(threads)
    while (task := tasks.get()) is not None:
        _one(task, work, events.put, index)
    events.close()
    events.join_thread()


def _die_with(parent: int) -> None:
    """End this process when its parent is gone: an orphan would go on writing to a study that someone resumes."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)

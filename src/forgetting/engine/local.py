"""Run tasks on this machine: in this process, or in several spawned ones that die with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Literal


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
        Tasks whose worker died without a word (killed, out of memory), and those that no worker was left to do.
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
    """Spawned workers, each on a pipe of its own: a worker that is killed holds no lock that others wait for."""

    def __init__(
        self, tasks: Sequence[str], work: Work, workers: int, threads: int, on_event: Callable[[Event], None]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.left = list(tasks)
        self.on_event = on_event
        self.held: dict[Connection, str] = {}
        self.died: list[str] = []
        self.processes: dict[Connection, BaseProcess] = {}
        for index in range(workers):
            ours, theirs = context.Pipe()
            arguments = (index, work, theirs, threads, os.getpid())
            self.processes[ours] = context.Process(target=_serve, args=arguments, daemon=True)
            self.processes[ours].start()
            theirs.close()  # so that the worker's death ends the pipe

    def run(self) -> list[str]:
        alive = dict(self.processes)
        try:
            for pipe in list(alive):
                self._next(pipe, alive)
            while alive:
                ready = set(wait(list(alive)))
                for pipe in [pipe for pipe in alive if pipe in ready]:
                    self._hear(pipe, alive)
        finally:
            for process in self.processes.values():
                process.terminate()
            for process in self.processes.values():
                process.join(timeout=10)
        return self.died + self.left

    def _next(self, pipe: Connection, alive: dict[Connection, BaseProcess]) -> None:
        """Give a worker its next task, or let it go."""
        if self.left:
            self.held[pipe] = self.left[0]
        try:
            pipe.send(self.left.pop(0) if self.left else None)
        except OSError:  # it died before it could read
            self._bury(pipe, alive)

    def _hear(self, pipe: Connection, alive: dict[Connection, BaseProcess]) -> None:
        try:
            event = pipe.recv()
        except (EOFError, OSError):
            self._bury(pipe, alive)
            return
        self.on_event(event)
        if event.kind == "ended":
            del self.held[pipe]
            self._next(pipe, alive)

    def _bury(self, pipe: Connection, alive: dict[Connection, BaseProcess]) -> None:
        process = alive.pop(pipe)
        process.join(timeout=10)
        if pipe in self.held:
            self.died.append(self.held.pop(pipe))


def _serve(index: int, work: Work, pipe: Connection, threads: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; our parent ends us
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    _set_threads(threads)
    while (task := pipe.recv()) is not None:
        _one(task, work, pipe.send, index)


def _die_with(parent: int) -> None:
    """End this process when its parent is gone: an orphan would go on writing to a study that someone resumes."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)

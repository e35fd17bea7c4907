"""Runs on this machine: in this process, or in several others that die with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from ...errors import ForgettingError
from ...tuning import stopping
from .. import own_code
from .base import POLL, RETRIES, Attempts, Event, Hear, PipeEnd, R, Work
from .worker import Context, WorkerProcess, one_task, set_threads, worker_context

SIGKILL = getattr(signal, "SIGKILL", 9)
"""Windows has no name for it."""


@dataclass(frozen=True)
class Local:
    """This machine.

    Attributes:
        jobs: tasks at a time, each in a process of its own; 1 stays in this one. None: one a core where one thread
            is enough for a task, else 1.
    """

    jobs: int | None = None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Nothing is needed."""
        yield

    def call(self, function: Callable[[], R]) -> R:
        """Call it here."""
        return function()

    def execute(self, tasks: Sequence[str], work: Work, on_event: Hear, *, one_thread: bool) -> dict[str, str]:
        """Do all tasks; see `Engine`. The cores are shared out among the jobs."""
        cores = count_cores()
        jobs = self.jobs or (cores if one_thread else 1)
        threads = 1 if one_thread else max(1, cores // jobs)
        if jobs == 1 or len(tasks) < 2:
            set_threads(threads)
            for task in tasks:
                stopping.check()
                one_task(task, work, on_event)
            return {}
        return _Pool(tasks, work, min(jobs, len(tasks)), threads, on_event).run()


def count_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Pool:
    """Worker processes, each on a pipe of its own: a worker that is killed holds no lock that others wait for."""

    def __init__(self, tasks: Sequence[str], work: Work, jobs: int, threads: int, on_event: Hear) -> None:
        self.context: Context = worker_context()
        self.left = list(tasks)
        self.work, self.jobs, self.threads, self.on_event = work, jobs, threads, on_event
        self.attempts = Attempts()
        self.held: dict[PipeEnd, str] = {}
        self.processes: dict[PipeEnd, BaseProcess] = {}
        self.new: set[PipeEnd] = set()
        self.stillborn = 0
        self.lost: dict[str, str] = {}
        self.error: BaseException | None = None
        self.stopped = False

    def run(self) -> dict[str, str]:
        try:
            for _ in range(self.jobs):
                self._hire()
            while self.processes:
                ready = wait(list(self.processes), timeout=POLL)
                for pipe in [pipe for pipe in list(self.processes) if pipe in ready]:
                    self._hear(pipe)
                if not self.stopped and (stopping.requested() is not None or self.error is not None):
                    self._stop()
        finally:
            for process in self.processes.values():
                process.kill()
            for process in self.processes.values():
                process.join(timeout=10)
        if self.error is not None:
            raise self.error
        stopping.check()
        return self.lost

    def _hire(self) -> None:
        try:
            own_code.check_same()  # a new process could not even read what it is sent
        except ForgettingError as error:
            self.error = self.error or error
            return
        ours, theirs = self.context.Pipe()
        try:
            process = self._start(theirs)
        except (EOFError, OSError):  # the server of forks was killed: do without
            self.context = multiprocessing.get_context("spawn")
            process = self._start(theirs)
        theirs.close()  # so that the worker's death ends the pipe
        self.processes[ours] = process
        self.new.add(ours)

    def _start(self, pipe: PipeEnd) -> BaseProcess:
        process = self.context.Process(target=_serve, args=(self.work, pipe, self.threads), daemon=True)
        process.start()
        return process

    def _stop(self) -> None:
        """Ask each worker to stop at its next step; what had not begun stays as it was."""
        self.stopped = True
        self.left.clear()
        for process in self.processes.values():
            process.terminate()

    def _next(self, pipe: PipeEnd) -> None:
        """Give a worker its next task, or let it go."""
        task = self.left.pop(0) if self.left else None
        if task is not None:
            self.held[pipe] = task
        try:
            pipe.send(task)
        except OSError:  # it died before it could read
            self._bury(pipe)

    def _hear(self, pipe: PipeEnd) -> None:
        try:
            told = pipe.recv()
        except (EOFError, OSError):
            self._bury(pipe)
            return
        if isinstance(told, BaseException):
            self.error = self.error or told
            self.held.pop(pipe, None)
            return
        if isinstance(told, Event):
            self.attempts.note(told)
            self.on_event(told)
        else:  # it is there
            self.new.discard(pipe)
            self.stillborn = 0
        if not isinstance(told, Event) or told.kind == "ended":
            self.held.pop(pipe, None)
            self._next(pipe)

    def _bury(self, pipe: PipeEnd) -> None:
        process = self.processes.pop(pipe)
        process.join(timeout=10)
        task = self.held.pop(pipe, None)
        if self.stopped:
            return
        how = ending(process)
        if pipe in self.new:  # it never came up
            self.new.discard(pipe)
            self.stillborn += 1
            if self.stillborn > RETRIES:
                self.lost |= dict.fromkeys(self.left, f"no worker process could be started ({how})")
                self.left.clear()
        elif task is not None:
            if self.attempts.again(task):
                self.on_event(Event(task, "retried", note=how))
                self.left.insert(0, task)
            else:
                self.lost[task] = self.attempts.why(task, how)
                self.on_event(Event(task, "ended"))
        if self.left and len(self.processes) < self.jobs:
            self._hire()


def ending(process: BaseProcess) -> str:
    """How a process that is gone ended, in words."""
    code = process.exitcode
    if code is None or code >= 0:
        return f"exit code {code}"
    if code == -SIGKILL:
        return "killed, probably because memory ran out"
    return f"signal {-code}"


def _serve(work: Work, pipe: PipeEnd, threads: int) -> None:
    """Do tasks from the pipe until there are none."""
    worker = WorkerProcess(pipe, threads)
    pipe.send("here")
    try:
        for task in worker.tasks():
            one_task(task, work, pipe.send)
    except stopping.StoppedError:
        return
    except Exception as error:
        worker.tell(error)

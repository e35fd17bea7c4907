"""Executes runs on this machine: in this process, or in worker processes that end with it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from ...errors import ForgettingError
from ...tuning import stopping
from .. import own_code
from .base import POLL, RETRIES, Attempts, Event, Hear, PipeEnd, R, Work, check_least
from .calling import call_in_worker
from .context import worker_context
from .worker import Context, WorkerProcess, ending, one_task, set_threads


@dataclass(frozen=True)
class Local:
    """Executes tasks on this machine.

    Attributes:
        jobs: tasks at a time, each in its own process; 1 uses this process. None: one per core if one thread per task
            is best, else 1.
    """

    jobs: int | None = None

    def __post_init__(self) -> None:
        """Check `jobs`: with -1, no process would ever be started, and the study would wait for ever.

        Raises:
            UsageError: not None and not a whole number of at least 1.
        """
        check_least("jobs", self.jobs, 1)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Do nothing, as nothing is needed."""
        yield

    def call(self, function: Callable[[], R]) -> R:
        """Call the function; with several jobs in a worker process, so that this process need not load the libraries.

        If this process has loaded torch already, or workers cannot be forked, that saves nothing, so it is called here.
        """
        if self._apart():
            context = worker_context()
            if context.get_start_method() == "forkserver":
                return call_in_worker(context, function)
        return function()

    def _apart(self) -> bool:
        """Whether to leave all work to worker processes, so that this process need not load the libraries."""
        return (self.jobs or 1) > 1 and "torch" not in sys.modules

    def execute(self, tasks: Sequence[str], work: Work, on_event: Hear, *, one_thread: bool) -> dict[str, str]:
        """Execute all tasks; see `Engine`. The cores are divided among the jobs."""
        cores = count_cores()
        jobs = self.jobs or (cores if one_thread else 1)
        threads = 1 if one_thread else max(1, cores // jobs)
        if jobs == 1 or (len(tasks) < 2 and not self._apart()):
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
    """Worker processes, each with its own pipe, so that a killed worker holds no lock that others need."""

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
            own_code.check_same()  # a new process would import the changed code
        except ForgettingError as error:
            self.error = self.error or error
            return
        ours, theirs = self.context.Pipe()
        try:
            process = self._start(theirs)
        except (EOFError, OSError):  # the fork server was killed
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
        """Ask each worker to stop at its next step, and start no further tasks."""
        self.stopped = True
        self.left.clear()
        for process in self.processes.values():
            process.terminate()

    def _next(self, pipe: PipeEnd) -> None:
        """Send a worker its next task, or tell it to end."""
        task = self.left.pop(0) if self.left else None
        if task is not None:
            self.held[pipe] = task
        try:
            pipe.send(task)
        except OSError:  # the worker died before it could read
            self._bury(pipe)

    def _hear(self, pipe: PipeEnd) -> None:
        """Receive a worker's message: an event, an error, or that it has started."""
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
        else:  # the worker has started
            self.new.discard(pipe)
            self.stillborn = 0
        if not isinstance(told, Event) or told.kind == "ended":
            self.held.pop(pipe, None)
            self._next(pipe)

    def _bury(self, pipe: PipeEnd) -> None:
        """Remove a worker that ended; retry its task or give it up, and start another worker if needed."""
        process = self.processes.pop(pipe)
        process.join(timeout=10)
        task = self.held.pop(pipe, None)
        if self.stopped:
            return
        how = ending(process)
        if pipe in self.new:  # it died while starting
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


def _serve(work: Work, pipe: PipeEnd, threads: int) -> None:
    """Execute tasks from the pipe until told to end."""
    worker = WorkerProcess(pipe, threads)
    pipe.send("here")
    try:
        for task in worker.tasks():
            one_task(task, work, pipe.send)
    except stopping.StoppedError:
        return
    except Exception as error:
        worker.tell(error)

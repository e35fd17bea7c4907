"""Each run by several processes of this machine at once, one run after another (data parallelism through accelerate).

The processes are ours and die with us; transformers' Trainer hands their model and batches to accelerate, which finds
the group that they form. A process that dies ends the others, and the run goes on from its last checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from ...errors import UsageError
from ...models import processes
from ...tuning import stopping
from .base import POLL, Attempts, Event, Hear, PipeEnd, R, Work
from .local import count_cores, ending
from .worker import WorkerProcess, one_task, worker_context

GRACE = 10.0
"""Seconds in which the other processes of a run end, too, once one has; then they wait for it and are killed."""


@dataclass(frozen=True)
class Accelerate:
    """This machine, each run by all processes of a launch; the first of them writes.

    Attributes:
        launch: how many, and on what, as `launching.read_launch` reads it.
    """

    launch: processes.Launch

    @contextmanager
    def ready(self) -> Iterator[None]:
        """See that the GPUs are there; inside, this process and those that it starts see no others."""
        before = os.environ.get("CUDA_VISIBLE_DEVICES")
        visible = "" if self.launch.device == "cpu" else self.launch.gpu_ids
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
        try:
            if self.launch.device == "cuda":
                self._check_gpus()
            yield
        finally:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before

    def _check_gpus(self) -> None:
        import torch

        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if there < self.launch.processes:
            raise UsageError(
                f"--accelerate-config: {self.launch.processes} processes need a GPU each, {there} are visible here; "
                "lower num_processes, or for processes on the CPU give distributed_type MULTI_CPU"
            )

    def call(self, function: Callable[[], R]) -> R:
        """Call it here; what it took of a GPU is given back."""
        result = function()
        if self.launch.device == "cuda":
            import gc

            import torch

            gc.collect()
            torch.cuda.empty_cache()
        return result

    def execute(self, tasks: Sequence[str], work: Work, on_event: Hear, *, one_thread: bool) -> dict[str, str]:
        """Do all tasks; see `Engine`. The cores are shared out among the processes."""
        threads = 1 if one_thread else max(1, count_cores() // self.launch.processes)
        lost: dict[str, str] = {}
        team: _Team | None = None
        attempts = Attempts()

        def hear(event: Event) -> None:
            attempts.note(event)
            on_event(event)

        def attempt(task: str) -> _Failure | None:
            nonlocal team
            stopping.check()
            team = team if team is not None and team.fit else _Team(self.launch, work, threads)
            failure = team.do(task, hear)
            stopping.check()
            return failure

        try:
            for task in tasks:
                while (failure := attempt(task)) is not None and failure.died and attempts.again(task):
                    on_event(Event(task, "retried", note=failure.words))
                if failure is not None:
                    lost[task] = attempts.why(task, failure.words) if failure.died else failure.words
                    on_event(Event(task, "ended"))
        finally:
            if team is not None:
                team.end()
        return lost


@dataclass(frozen=True)
class _Failure:
    """Why the processes did not end a task: in words, and whether one of them died."""

    words: str
    died: bool


class _Team:
    """The processes of a launch, each on a pipe of its own, in the order of their numbers."""

    def __init__(self, launch: processes.Launch, work: Work, threads: int) -> None:
        context = worker_context() if launch.device == "cpu" else multiprocessing.get_context("spawn")
        self.place = tempfile.mkdtemp(prefix="forgetting-")
        self.pipes: list[PipeEnd] = []
        self.processes: list[BaseProcess] = []
        self.fit = False
        """Whether they can do a further task."""
        try:
            for index in range(launch.processes):
                ours, theirs = context.Pipe()
                place = (launch, index, f"{self.place}/meeting")
                process = context.Process(target=_serve, args=(work, theirs, threads, place), daemon=True)
                process.start()
                theirs.close()  # so that the process's death ends the pipe
                self.pipes.append(ours)
                self.processes.append(process)
            self.fit = True
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Let them go; kill what stays: whatever is half written is made good when a run resumes."""
        if self.fit:
            for pipe in self.pipes:
                with suppress(OSError):
                    pipe.send(None)
            for process in self.processes:
                process.join(timeout=GRACE)
        self.fit = False
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(timeout=10)
        shutil.rmtree(self.place, ignore_errors=True)

    def do(self, task: str, hear: Hear) -> _Failure | None:
        """Let all do a task together; None where the main process ended it, whatever it has recorded.

        Raises:
            Exception: what the main process could not record, or no room on the disk in any.
        """
        for pipe in self.pipes:
            with suppress(OSError):  # it died: `_listen` finds out
                pipe.send(task)
        try:
            failure = self._listen(hear)
        except BaseException:
            self.fit = False
            self.end()
            raise
        if failure is not None or not self.fit:
            self.end()
        return failure

    def _listen(self, hear: Hear) -> _Failure | None:
        ended: set[int] = set()
        failed: dict[int, BaseException] = {}
        stopped, over = False, 0.0
        while len(ended | failed.keys()) < len(self.pipes):
            if not stopped and stopping.requested() is not None:
                stopped = True
                for process in self.processes:
                    process.terminate()
            for pipe in wait([pipe for i, pipe in enumerate(self.pipes) if i not in ended | failed.keys()], POLL):
                index = self.pipes.index(pipe)  # type: ignore[arg-type]
                told = self._hear(index)
                if told is None and not stopped:
                    return _Failure(f"process {index} of {len(self.pipes)}: {ending(self.processes[index])}", died=True)
                if isinstance(told, Event):
                    hear(told)
                if isinstance(told, BaseException):
                    failed[index] = told
                elif not isinstance(told, Event) or told.kind == "ended":
                    ended.add(index)
            if 0 in failed:
                raise failed[0]
            if 0 in ended or failed or not self.fit:  # not fit: it was stopped, and one has left
                over = over or time.monotonic()
                if time.monotonic() - over > GRACE:
                    self.fit = False
                    break
        self.fit = self.fit and not failed
        return self._judge(ended, failed)

    def _judge(self, ended: set[int], failed: dict[int, BaseException]) -> _Failure | None:
        """What became of a task that is over, or that some processes wait in for others that failed."""
        if not failed or 0 in ended:
            return None
        index, error = min(failed.items())
        if not isinstance(error, processes.RunFailedError):
            raise error
        return _Failure(f"process {index} of {len(self.pipes)}: {error}", died=False)

    def _hear(self, index: int) -> Event | BaseException | str | None:
        """What a process says; None where it has died or left."""
        try:
            told: Event | BaseException | str = self.pipes[index].recv()
        except (EOFError, OSError):
            self.fit = False
            self.processes[index].join(timeout=10)
            return None
        return told


def _serve(work: Work, pipe: PipeEnd, threads: int, place: tuple[processes.Launch, int, str]) -> None:
    """Do tasks from the pipe together with the others, until there are none."""
    worker = WorkerProcess(pipe, threads)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's advice to the libraries, once a process
    launch, index, meeting = place
    try:
        processes.join(launch, index, meeting)
        for task in worker.tasks():
            one_task(task, work, pipe.send if index == 0 else _silent)
            if index:
                pipe.send("ended")
        processes.leave()
    except stopping.StoppedError:
        processes.leave()
    except Exception as error:
        worker.tell(error)
        while True:  # the others would take our end for their own failure; our parent ends us all
            time.sleep(1)


def _silent(event: Event) -> None:
    """Of one run, one process tells."""


def read_engine(path: Path) -> Accelerate:
    """The engine of an accelerate configuration file.

    Raises:
        UsageError: as `launching.read_launch`.
    """
    from ..launching import read_launch

    return Accelerate(read_launch(path))

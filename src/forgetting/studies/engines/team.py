"""The processes on this machine that execute runs together, each with its own pipe."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from ...models import processes
from ...tuning import stopping
from .base import POLL, Event, Hear, PipeEnd, Work
from .context import worker_context
from .machines import Machines
from .worker import WorkerProcess, ending, one_task

GRACE = 10.0
"""Seconds that the other processes of a run have to end after one has; then they are killed, as they wait for it."""
STOPPED = "stopped"
"""Message of a process that stopped because it, or another one, was asked to."""


@dataclass(frozen=True)
class Failure:
    """Why the processes did not finish a task, in words, and whether one of them died."""

    words: str
    died: bool


class Team:
    """The processes of a launch on this machine, in the order of their ranks, each with its own pipe.

    With several machines, the first machine's team waits until the others have finished the task, and receives their
    outcome.
    """

    def __init__(
        self,
        launch: processes.Launch,
        work: Work,
        threads: int,
        machines: Machines | None = None,
        number: int = 0,
    ) -> None:
        """Start the processes.

        Args:
            launch: the launch, with this machine's index.
            work: executes a task.
            threads: CPU threads per process.
            machines: the connection to the other machines, if there are any.
            number: number of the team, equal on all machines.
        """
        self.machines, self.number, self.first = machines, number, launch.local.start
        self.count = launch.processes
        context = worker_context() if launch.device == "cpu" else multiprocessing.get_context("spawn")
        self.place = tempfile.mkdtemp(prefix="forgetting-")
        self.pipes: list[PipeEnd] = []
        self.processes: list[BaseProcess] = []
        self.heard: dict[tuple[int, int], float] = {}
        self.fit = False
        """Whether the processes can execute another task."""
        try:
            for index in launch.local:
                ours, theirs = context.Pipe()
                meeting = f"{self.place}/meeting" if machines is None else f"group/{number}"
                place = (launch, index, meeting)
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
        """Ask the processes to end, and kill those that do not; resuming a run repairs incomplete files."""
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

    def do(self, task: str, hear: Hear, number: int = 0) -> Failure | None:
        """Execute a task together.

        Args:
            task: its name.
            hear: called with the events of the main process.
            number: number of the task, equal on all machines.

        Returns:
            None if the main process finished the task, even if it recorded the run as failed; else why it did not.

        Raises:
            Exception: an error that the main process could not record, such as a full disk.
        """
        for pipe in self.pipes:
            with suppress(OSError):  # if the process died, `_listen` notices
                pipe.send(task)
        try:
            failure = self._listen(hear, number)
            if self.machines is not None:
                failure = self._agree(self.machines, failure, number)
        except BaseException:
            self.fit = False
            self.end()
            raise
        if failure is not None or not self.fit:
            self.end()
        return failure

    def _listen(self, hear: Hear, number: int) -> Failure | None:
        """Receive the messages of this machine's processes until the task is over."""
        ended: set[int] = set()
        failed: dict[int, BaseException] = {}
        stopped, over = False, 0.0
        while len(ended | failed.keys()) < len(self.pipes):
            if self.machines is not None:
                self.machines.check()
            if not stopped and stopping.requested() is not None:
                stopped = True
                for process in self.processes:
                    process.terminate()
            for pipe in wait([pipe for i, pipe in enumerate(self.pipes) if i not in ended | failed.keys()], POLL):
                index = self.pipes.index(pipe)  # type: ignore[arg-type]
                told = self._hear(index)
                if told is None and not stopped and not self._asked_to_stop():
                    who = f"process {self.first + index} of {self.count}"
                    return Failure(f"{who}: {ending(self.processes[index])}", died=True)
                if isinstance(told, Event):
                    hear(told)
                if isinstance(told, BaseException):
                    failed[index] = told
                elif not isinstance(told, Event) or told.kind == "ended":
                    ended.add(index)
            if (theirs := self._theirs(number)) is not None:
                return theirs
            if 0 in failed and self.first == 0:
                raise failed[0]
            if (0 in ended and self.first == 0) or failed or not self.fit or self._is_over(number):
                over = over or time.monotonic()
                if time.monotonic() - over > GRACE:
                    self.fit = False
                    break
        self.fit = self.fit and not failed
        return self._judge(ended, failed)

    def _theirs(self, number: int) -> Failure | None:
        """On the first machine: how another machine's processes failed.

        A failure without a death is reported only after GRACE seconds, since our own processes may give the cause.
        """
        if self.machines is None or self.first:
            return None
        for machine in self.machines.others:
            told = self.machines.told(f"result/{number}/{machine}") or {}
            if gone := _gone(self.machines, machine):
                return Failure(gone, died=True)
            if told.get("died"):
                return Failure(told["words"], died=True)
            if told.get("words"):
                since = self.heard.setdefault((number, machine), time.monotonic())
                if time.monotonic() - since > GRACE:
                    return Failure(told["words"], died=False)
        return None

    def _agree(self, machines: Machines, failure: Failure | None, number: int) -> Failure | None:
        """Tell the first machine how a task ended here; on the first machine, wait until it has ended on all others."""
        if failure is not None or not self.fit:
            self.end()
        if self.first:
            words = "" if failure is None else f"machine {machines.mine}, {failure.words}"
            died = failure is not None and failure.died
            machines.tell(f"result/{number}/{machines.mine}", {"words": words, "died": died, "fit": self.fit})
            return failure
        machines.tell(f"over/{number}", True)
        for machine in machines.others:
            while (told := machines.told(f"result/{number}/{machine}")) is None:
                if gone := _gone(machines, machine):
                    told = {"words": gone, "died": True, "fit": False}
                    break
                machines.check()
                time.sleep(POLL)
            self.fit = self.fit and told["fit"]
            if told["died"] and (failure is None or not failure.died):
                failure = Failure(told["words"], died=True)
        return failure

    def _is_over(self, number: int) -> bool:
        """On another machine: whether the first machine has finished a task."""
        return self.machines is not None and self.first > 0 and self.machines.told(f"over/{number}") is not None

    def _asked_to_stop(self) -> bool:
        """Whether another machine was asked to stop; our processes may learn this before our command does."""
        if self.machines is None:
            return False
        self.machines.check()
        return stopping.requested() is not None

    def _judge(self, ended: set[int], failed: dict[int, BaseException]) -> Failure | None:
        """The outcome of a task that is over, or whose remaining processes wait for processes that failed."""
        if not failed or (0 in ended and self.first == 0):
            return None
        index, error = min(failed.items())
        if not isinstance(error, processes.RunFailedError) and self.first == 0:
            raise error
        return Failure(f"process {self.first + index} of {self.count}: {error}", died=False)

    def _hear(self, index: int) -> Event | BaseException | str | None:
        """A process's message; None if it has ended."""
        try:
            told: Event | BaseException | str = self.pipes[index].recv()
        except (EOFError, OSError):
            self.fit = False
            self.processes[index].join(timeout=10)
            return None
        if told == STOPPED:  # all processes stop at the same step; our command may not have been asked to stop yet
            self.fit = False
            if self.machines is not None:
                stopping.request()
        return told


def _gone(machines: Machines, machine: int) -> str:
    """Why another machine will not finish the current task, in words; empty if it may."""
    if machines.restarted(machine):
        return f"the command of machine {machine} was started again"
    return f"machine {machine} has left" if machines.told(f"left/{machine}") else ""


def _serve(work: Work, pipe: PipeEnd, threads: int, place: tuple[processes.Launch, int, str]) -> None:
    """Execute tasks from the pipe together with the other processes, until told to end."""
    worker = WorkerProcess(pipe, threads)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # hides advice that DDP prints in every process
    launch, index, meeting = place
    try:
        processes.join(launch, index, meeting)
        for task in worker.tasks():
            one_task(task, work, pipe.send if index == 0 else _silent)
            if index:
                pipe.send("ended")
        processes.leave()
    except stopping.StoppedError:
        if launch.machines > 1:
            pipe.send(STOPPED)
        processes.leave()
    except Exception as error:
        worker.tell(error)
        while True:  # wait to be killed: if this process ended, the others would report that as their failure
            time.sleep(1)


def _silent(event: Event) -> None:
    """Do nothing: only the main process reports events."""

"""Executes runs one after another, each with several processes on one or more machines, through accelerate.

This process starts the others, and they end with it. They form a torch process group, which accelerate uses when
transformers' Trainer passes it the model and the batches. If a process dies, the others are ended, and the run resumes
from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ...errors import ForgettingError, UsageError
from ...models import processes
from ...tuning import stopping
from .base import POLL, Attempts, Event, Hear, R, Work
from .local import count_cores
from .machines import Machines
from .team import Failure, Team


@dataclass(frozen=True)
class Accelerate:
    """Executes each run with all processes of a launch, on one or more machines; the first process writes.

    Attributes:
        launch: number and device of the processes, from `launching.read_launch`.
    """

    launch: processes.Launch

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Check that the GPUs exist; in the block, this process and those it starts see only the launch's GPUs."""
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
        needed = len(self.launch.local)
        if there < needed:
            raise UsageError(
                f"--accelerate-config: {needed} processes need a GPU each, but {there} are visible here; "
                "lower num_processes, or give distributed_type MULTI_CPU to use the CPU"
            )

    def call(self, function: Callable[[], R]) -> R:
        """Call the function in this process, then free the GPU memory that it used."""
        result = function()
        if self.launch.device == "cuda":
            import gc

            import torch

            gc.collect()
            torch.cuda.empty_cache()
        return result

    def execute(self, tasks: Sequence[str], work: Work, on_event: Hear, *, one_thread: bool) -> dict[str, str]:
        """Execute all tasks; see `Engine`. The cores are divided among the processes of this machine."""
        threads = 1 if one_thread else max(1, count_cores() // len(self.launch.local))
        if self.launch.machines == 1:
            return _Tasks(self.launch, work, threads, on_event, None).do(tasks)
        machines = Machines(self.launch, _content(self.launch, work))
        done: _Tasks | None = None
        why: dict[str, Any] = {}
        try:
            if tasks:  # without tasks, the other machines are only told to end
                machines.gather()
            done = _Tasks(self.launch, work, threads, on_event, machines)
            return done.do(tasks)
        except BaseException as error:
            why = {"stopped": error.number} if isinstance(error, stopping.StoppedError) else {"failed": str(error)}
            raise
        finally:
            machines.end(why, done.number if done is not None else 0)

    def follow(self, work: Work) -> None:
        """On a machine other than the first: execute the tasks that the first one announces, until the end.

        Raises:
            StoppedError: a stop was requested on any machine.
            ForgettingError: the first machine failed or is gone.
        """
        threads = max(1, count_cores() // len(self.launch.local))
        machines = Machines(self.launch, _content(self.launch, work))
        team, number = None, machines.begin
        try:
            while "end" not in (told := self._next(machines, number)):
                threads = told["threads"] or threads
                if team is None or not team.fit or team.number != told["team"]:
                    if team is not None:
                        team.end()
                    team = Team(self.launch, work, threads, machines, told["team"])
                team.do(told["task"], _silent, number)
                number += 1
            if "stopped" in told["end"]:
                raise stopping.StoppedError(told["end"]["stopped"])
            if "failed" in told["end"]:
                raise ForgettingError(f"machine 0: {told['end']['failed']}")
        finally:
            if team is not None:
                team.end()
            machines.leave()

    def _next(self, machines: Machines, number: int) -> dict[str, Any]:
        """Wait for the first machine's announcement with this number: a task, or the end."""
        while (told := machines.told(f"task/{number}")) is None:
            machines.check()
            stopping.check()
            time.sleep(POLL)
        found: dict[str, Any] = told
        return found


class _Tasks:
    """Executes tasks with a team of processes; if a process dies, tries the task again with a new team."""

    def __init__(
        self, launch: processes.Launch, work: Work, threads: int, on_event: Hear, machines: Machines | None
    ) -> None:
        self.launch, self.work, self.threads, self.on_event = launch, work, threads, on_event
        self.machines, self.number, self.teams = machines, 0, 0
        self.team: Team | None = None
        self.attempts = Attempts()

    def do(self, tasks: Sequence[str]) -> dict[str, str]:
        """Execute all tasks; returns the reason by task for those given up."""
        lost: dict[str, str] = {}
        try:
            for task in tasks:
                while (failure := self._attempt(task)) is not None and failure.died and self.attempts.again(task):
                    self.on_event(Event(task, "retried", note=failure.words))
                if failure is not None:
                    lost[task] = self.attempts.why(task, failure.words) if failure.died else failure.words
                    self.on_event(Event(task, "ended"))
        finally:
            if self.team is not None:
                self.team.end()
        return lost

    def _attempt(self, task: str) -> Failure | None:
        stopping.check()
        if self.team is None or not self.team.fit:
            self.teams += 1
            self.team = Team(self.launch, self.work, self.threads, self.machines, self.teams)
        number = self.number
        self.number += 1
        if self.machines is not None:
            self.machines.announce(number, {"task": task, "team": self.team.number, "threads": self.threads})
        failure = self.team.do(task, self._hear, number)
        stopping.check()
        return failure

    def _hear(self, event: Event) -> None:
        self.attempts.note(event)
        self.on_event(event)


def _silent(event: Event) -> None:
    """Do nothing: only the command on the first machine shows progress."""


def _content(launch: processes.Launch, work: Work) -> dict[str, Any]:
    """What must be equal on all machines."""
    return {
        "accelerate configuration": json.loads(json.dumps(dict(launch.content))),
        "study": str(getattr(work, "study", "")),
        "version": metadata.version("forgetting"),
    }


def read_engine(path: Path, machine: int | None = None) -> Accelerate:
    """The engine for an accelerate configuration file.

    Args:
        path: the file.
        machine: index of this machine; None takes it from the environment or the file.

    Raises:
        UsageError: see `launching.read_launch`.
    """
    from ..launching import read_launch

    return Accelerate(read_launch(path, machine))

"""What an engine is: it does named tasks somewhere, tries again those whose process died, and tells what happens."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import connection
from typing import Literal, Protocol, TypeVar

R = TypeVar("R")
RETRIES = 3
"""Times in a row that a task whose process died without getting further is tried again."""
POLL = 0.2
"""Seconds between looks at whether the work was asked to stop."""
if sys.platform == "win32":
    PipeEnd = connection.PipeConnection
else:
    PipeEnd = connection.Connection


@dataclass(frozen=True)
class Event:
    """Something that happened to a task.

    It started, finished a step, or ended; its process died and it is tried again; or another process holds it.
    `note` says why or who.
    """

    task: str
    kind: Literal["started", "step", "ended", "retried", "held"]
    step: int = 0
    note: str = ""


Tell = Callable[[int], None]
Hear = Callable[[Event], None]
Work = Callable[[str, Tell], None]
"""Does one task, telling each finished step. It records its own failures: what it raises ends the whole execution."""


class Engine(Protocol):
    """Where tasks are done."""

    def ready(self) -> AbstractContextManager[None]:
        """Hold what the engine needs; `call` and `execute` are used inside.

        Raises:
            UsageError: it is not installed, or no machine has what a task asks for.
            ForgettingError: it cannot be reached.
        """

    def call(self, function: Callable[[], R]) -> R:
        """Do the work that all tasks share, once, on a machine that could do a task; what it raises is raised."""

    def execute(self, tasks: Sequence[str], work: Work, on_event: Hear, *, one_thread: bool) -> dict[str, str]:
        """Do all tasks.

        Args:
            tasks: names, begun in this order.
            work: does one; must be picklable.
            on_event: called in this process with what happens.
            one_thread: a task gains nothing from a second CPU thread.

        Returns:
            Task -> why it was given up, for those whose process died again and again.

        Raises:
            StoppedError: a stop was requested; the tasks in hand stopped at a whole step.
            Exception: what `work` raised.
        """


class Attempts:
    """Decides whether a task whose process died is tried again."""

    def __init__(self) -> None:
        self.deaths: Counter[str] = Counter()
        self.furthest: dict[str, int] = {}
        self.before: dict[str, int] = {}

    def note(self, event: Event) -> None:
        """Remember how far a task came."""
        self.furthest[event.task] = max(self.furthest.get(event.task, 0), event.step)

    def again(self, task: str) -> bool:
        """Count a death; whether to try again. One that came after new steps starts the count anew."""
        furthest = self.furthest.get(task, 0)
        if furthest > self.before.get(task, 0):
            self.deaths[task] = 0
        self.before[task] = furthest
        self.deaths[task] += 1
        return self.deaths[task] <= RETRIES

    def why(self, task: str, last: str) -> str:
        """Why a task was given up, in words."""
        return f"its process died {self.deaths[task]} times in a row without progress ({last})"

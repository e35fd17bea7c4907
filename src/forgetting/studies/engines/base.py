"""The interface of engines: they execute named tasks, retry those whose process died, and report events."""

from __future__ import annotations

import math
import numbers
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Literal, Protocol, TypeVar

from ...errors import UsageError

R = TypeVar("R")
RETRIES = 3
"""How many times in a row a task is retried if its process dies without progress."""
POLL = 0.2
"""Seconds between checks whether a stop was requested."""
if sys.platform == "win32":
    PipeEnd = connection.PipeConnection
else:
    PipeEnd = connection.Connection


@dataclass(frozen=True)
class Event:
    """An event of a task.

    Attributes:
        task: name of the task.
        kind: `started`; `step`, it finished a step; `ended`; `retried`, its process died and it is tried again; `held`,
            another process holds it.
        step: number of the finished step.
        note: why it is retried, or which process holds it.
    """

    task: str
    kind: Literal["started", "step", "ended", "retried", "held"]
    step: int = 0
    note: str = ""


Tell = Callable[[int], None]
Hear = Callable[[Event], None]
Work = Callable[[str, Tell], None]
"""Executes one task and reports each finished step. It records its own failures; anything it raises ends `execute`."""


class Engine(Protocol):
    """Executes tasks."""

    def ready(self) -> AbstractContextManager[None]:
        """A context manager that holds what the engine needs; `call` and `execute` must be used inside it.

        Raises:
            UsageError: the engine is not installed, or no machine has the resources that a task needs.
            ForgettingError: the engine cannot be reached.
        """

    def call(self, function: Callable[[], R]) -> R:
        """Call a function once, on a machine that could execute a task; raises what the function raises."""

    def execute(self, tasks: Sequence[str], work: Work, on_event: Hear, *, one_thread: bool) -> dict[str, str]:
        """Execute all tasks.

        Args:
            tasks: names, started in this order.
            work: executes one task; must be picklable.
            on_event: called in this process with each event.
            one_thread: whether one CPU thread per task is best.

        Returns:
            Task -> reason, for tasks that were given up because their process kept dying.

        Raises:
            StoppedError: a stop was requested; the running tasks stopped after a complete step.
            Exception: what `work` raised.
        """


def check_least(name: str, value: float | None, least: float) -> None:
    """Refuse a number of an engine that is below its least value; None means the default.

    Args:
        name: the engine's argument.
        value: as given.
        least: a whole number if the value must be one.

    Raises:
        UsageError: names the argument, what came and what is allowed.
    """
    kind: Any = numbers.Integral if isinstance(least, int) else numbers.Real
    if value is None or (isinstance(value, kind) and not isinstance(value, bool) and least <= value < math.inf):
        return
    what = "whole number" if isinstance(least, int) else "number"
    raise UsageError(f"{name}: got {value!r:.40}; give None, or a {what} of at least {least:g}")


class Attempts:
    """Decides whether a task whose process died is tried again."""

    def __init__(self) -> None:
        self.deaths: Counter[str] = Counter()
        self.furthest: dict[str, int] = {}
        self.before: dict[str, int] = {}

    def note(self, event: Event) -> None:
        """Remember the furthest step of the event's task."""
        self.furthest[event.task] = max(self.furthest.get(event.task, 0), event.step)

    def again(self, task: str) -> bool:
        """Count a death and return whether to retry; after new steps the count restarts."""
        furthest = self.furthest.get(task, 0)
        if furthest > self.before.get(task, 0):
            self.deaths[task] = 0
        self.before[task] = furthest
        self.deaths[task] += 1
        return self.deaths[task] <= RETRIES

    def why(self, task: str, last: str) -> str:
        """Why a task was given up, in words."""
        return f"its process died {self.deaths[task]} times in a row without progress ({last})"

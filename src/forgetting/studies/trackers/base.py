"""What a tracker is: a place outside the study that shows its runs, fed from the rows that the study has stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

Outcome = Literal["done", "failed", "stopped"]
"""How a run ended; one that was stopped goes on later."""


@dataclass(frozen=True)
class Opening:
    """What a tracker's run is opened with. No secret is in it.

    Attributes:
        id: the same whenever the run goes on, and no other run's.
        name: what people see.
        project: the study's name.
        group: the name of the study's folder.
        config: what was configured, flat, with dots in its keys.
        tags: data set, method, rank, seed.
        folder: where files may be written, within the study's folder.
    """

    id: str
    name: str
    project: str
    group: str
    config: Mapping[str, str | int | float | bool]
    tags: Mapping[str, str]
    folder: Path


class Tracker(ABC):
    """One run in a tracker. A failure is whatever its library raises: the caller warns and goes on without it."""

    name: ClassVar[str]
    """As a configuration names it, and the module that must be there."""
    package: ClassVar[str]
    """What pip installs."""

    @classmethod
    def unready(cls) -> str:
        """Why it could record nothing, though it is installed, and what to do; empty where it could."""
        return ""

    @abstractmethod
    def __init__(self, opening: Opening) -> None:
        """Open the run, or the one of this id that is there."""

    @abstractmethod
    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers by name, at a step that is not below the last one's."""

    @abstractmethod
    def close(self, outcome: Outcome) -> None:
        """Close the run, with all that was logged recorded."""

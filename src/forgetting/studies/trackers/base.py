"""The interface of experiment trackers, which show a study's runs outside the study folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

Outcome = Literal["done", "failed", "stopped"]
"""How a run ended; a stopped run can be resumed."""


@dataclass(frozen=True)
class Opening:
    """Description of a tracker's run. Contains no secrets.

    Attributes:
        id: unique id of the run; the same when the run is resumed.
        name: displayed name.
        project: the study's name.
        group: name of the study folder.
        config: the configuration, flat, with dotted keys.
        tags: data set, method, rank, mitigations and seed.
        folder: folder within the study folder where the tracker may write files.
    """

    id: str
    name: str
    project: str
    group: str
    config: Mapping[str, str | int | float | bool]
    tags: Mapping[str, str]
    folder: Path


class Tracker(ABC):
    """One run in a tracker. Methods may raise any exception; the caller then warns and continues without it."""

    name: ClassVar[str]
    """Name in configurations; also the module that must be importable."""
    package: ClassVar[str]
    """Name of the package for pip."""

    @classmethod
    def unready(cls) -> str:
        """Why the installed tracker could not record anything, and what to do; empty if it could."""
        return ""

    @abstractmethod
    def __init__(self, opening: Opening) -> None:
        """Open the run; resume it if the tracker already has one with this id."""

    @abstractmethod
    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers by name, at a step no lower than the previous one."""

    @abstractmethod
    def close(self, outcome: Outcome) -> None:
        """Close the run after everything logged is recorded."""

"""The interface of suites: a named suite, and the suite that it makes for a model."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from .. import items

Kind = Literal["answers", "refusals"]


@dataclass(frozen=True)
class Suite:
    """Tasks that are evaluated together.

    Attributes:
        name: name in results, and of its file in the store.
        kind: `answers`, which are right or wrong, or `refusals`, judged replies to harmful and harmless prompts.
        tasks: names of lm-eval tasks, or paths of their YAML files.
        local: whether its items were written to the folder as tasks of our own.
        note: what a reader should know about the source of its items.
    """

    name: str
    kind: Kind
    tasks: tuple[str | Path, ...]
    local: bool = False
    note: str = ""


@dataclass(frozen=True)
class Circumstances:
    """The circumstances in which a suite is asked.

    Attributes:
        miniature: whether the base model is the miniature, which has its own items.
        folder: folder for tasks with local items.
        harmful, harmless: prompts for `safety`: a .csv, .txt or .jsonl file or a Hub id.
        max_generated: maximum tokens of a reply to a local item.
    """

    miniature: bool
    folder: Path
    harmful: str | None = None
    harmless: str | None = None
    max_generated: int = items.MAX_GENERATED

    def local(self, name: str, kind: Kind, tasks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Suite:
        """Write tasks with local items to the folder, and make a suite of them.

        Args:
            name: name of the suite.
            kind: kind of the suite.
            tasks: items by the name of their task.
        """
        written = [
            items.write_task(self.folder, task, rows, judged=kind == "refusals", max_generated=self.max_generated)
            for task, rows in tasks.items()
        ]
        return Suite(name, kind, tuple(written), local=True)


class NamedSuite(ABC):
    """A suite that users choose by name. A new one is one file, and one row in `SUITES` and in the contract test."""

    name: ClassVar[str]
    kind: ClassVar[Kind]

    @abstractmethod
    def make(self, at: Circumstances) -> Suite:
        """Make the suite.

        Raises:
            UsageError: something that it needs was not given.
        """

    def by_default(self, at: Circumstances) -> bool:
        """Whether it is asked if the user names no suite."""
        return True

    def files(self, at: Circumstances) -> dict[str, str]:
        """The file that the items of each of its local tasks are read from, by task name; empty if it reads no file."""
        return {}


class Answers(NamedSuite):
    """Questions with right answers: a test corpus for the miniature, and lm-eval tasks for other models."""

    kind: ClassVar[Kind] = "answers"
    stock: ClassVar[tuple[str, ...]]
    """Names of lm-eval tasks."""

    def make(self, at: Circumstances) -> Suite:
        """See `NamedSuite`."""
        if not at.miniature:
            return Suite(self.name, self.kind, self.stock)
        rows = [
            {
                "id": row["id"],
                "prompt": row["prompt"],
                "answers": [row["answer"]],
                "category": row["kind"],
                "cluster": "",
            }
            for row in miniature_rows(self.name)
        ]
        return at.local(self.name, self.kind, {f"miniature_{self.name}": rows})


def miniature_rows(name: str) -> list[dict[str, Any]]:
    """A test corpus in a pseudo-random order, so that its first items are a fair sample of all kinds."""
    from ...data.miniature import rows

    return sorted(rows(name), key=lambda row: hashlib.sha256(str(row["prompt"]).encode()).hexdigest()[:16])

"""What a suite is: the one who asks by name, and what is asked then."""

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
    """What is evaluated together.

    Attributes:
        name: the user's word for it; also of its file in the store.
        kind: `answers` are right or wrong; `refusals` are judged replies to harmful and harmless prompts.
        tasks: names of lm-eval tasks, or paths of their YAML files.
        local: whether its items were written into the folder, as tasks of our own.
        note: what a reader should know of where its items come from.
    """

    name: str
    kind: Kind
    tasks: tuple[str | Path, ...]
    local: bool = False
    note: str = ""


@dataclass(frozen=True)
class Circumstances:
    """Of whom and with what a suite is asked.

    Attributes:
        miniature: whether the base model is the embedded one, which has items of its own.
        folder: where tasks over local items are written.
        harmful, harmless: prompts for `safety`: a .csv, .txt or .jsonl file or a Hub id.
        max_generated: tokens of a reply to a local item.
    """

    miniature: bool
    folder: Path
    harmful: str | None = None
    harmless: str | None = None
    max_generated: int = items.MAX_GENERATED

    def local(self, name: str, kind: Kind, tasks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Suite:
        """A suite of tasks over local items, written into the folder.

        Args:
            name: of the suite.
            kind: of its answers.
            tasks: items by the name of their task.
        """
        written = [
            items.write_task(self.folder, task, rows, judged=kind == "refusals", max_generated=self.max_generated)
            for task, rows in tasks.items()
        ]
        return Suite(name, kind, tuple(written), local=True)


class NamedSuite(ABC):
    """A suite that is asked for by its name. A new one is one file, and one row in `SUITES` and the contract test."""

    name: ClassVar[str]
    kind: ClassVar[Kind]

    @abstractmethod
    def make(self, at: Circumstances) -> Suite:
        """What is asked.

        Raises:
            UsageError: it needs what was not given.
        """

    def by_default(self, at: Circumstances) -> bool:
        """Whether it is asked where no suite is named."""
        return True

    def files(self, at: Circumstances) -> dict[str, str]:
        """Names of its local tasks, and the file that the items of each were read from; none where it reads no file."""
        return {}


class Answers(NamedSuite):
    """Questions with right answers: a test corpus of the miniature, and tasks of lm-eval for every other model."""

    kind: ClassVar[Kind] = "answers"
    stock: ClassVar[tuple[str, ...]]
    """Tasks of lm-eval."""

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
    """A test corpus in an order that mixes its kinds, so that the first so many items are a fair sample."""
    from ...data.miniature import rows

    return sorted(rows(name), key=lambda row: hashlib.sha256(str(row["prompt"]).encode()).hexdigest()[:16])

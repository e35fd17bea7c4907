"""Suites behind one contract: a name, what kind of answer it judges, and the lm-eval tasks that it runs.

`knowledge`, `reasoning` and `safety`; a user's JSONL file or lm-eval YAML; any task of lm-eval by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .. import files
from ..errors import UsageError
from . import items
from .prompts import FILES, Prompts, read_prompts
from .settings import Settings

Kind = Literal["answers", "refusals"]
BUILT_IN = ("knowledge", "reasoning", "safety")
STOCK = {"knowledge": ("mmlu",), "reasoning": ("arc_challenge", "gsm8k")}
"""What the built-in suites run on models other than the miniature: tasks of lm-eval. The paper uses arc_challenge."""


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
class Plan:
    """What is asked, and how.

    Attributes:
        suites: `knowledge`, `reasoning`, `safety`, a .jsonl or lm-eval .yaml file, or a task of lm-eval; empty is the
            three, less `safety` where there are no prompts for it.
        settings: how suites are run.
        harmful, harmless: prompts of `safety`; the miniature has its own.
        keep_completions: store replies to harmful prompts.
        max_generated: tokens of a reply to a local item or prompt.
        include: folders in which lm-eval looks for tasks and groups, besides its own.
    """

    suites: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)
    harmful: str | None = None
    harmless: str | None = None
    keep_completions: bool = False
    max_generated: int = items.MAX_GENERATED
    include: tuple[str, ...] = ()

    def make(self, *, miniature: bool, folder: Path, kept: bool = False) -> list[Suite]:
        """The suites, their local items written to `folder`.

        Args:
            miniature, folder, kept: as for `make_suites`.

        Raises:
            UsageError: as `make_suites`.
        """
        names = self.suites or (BUILT_IN if miniature or self.harmful or self.harmless else BUILT_IN[:2])
        return make_suites(
            names,
            miniature=miniature,
            folder=folder,
            harmful=self.harmful,
            harmless=self.harmless,
            max_generated=self.max_generated,
            kept=kept,
        )


def make_suites(
    names: Sequence[str],
    *,
    miniature: bool,
    folder: Path,
    harmful: str | None = None,
    harmless: str | None = None,
    max_generated: int = items.MAX_GENERATED,
    kept: bool = False,
) -> list[Suite]:
    """The suites of a list of names and files.

    Args:
        names: built-in names, paths of .jsonl and .yaml files, or names of lm-eval tasks.
        miniature: whether the base model is the embedded one, which has items of its own.
        folder: where tasks over local items are written.
        harmful, harmless: prompts for `safety`: a .csv, .txt or .jsonl file or a Hub id.
        max_generated: tokens of a reply to a local item.
        kept: where a file of items is gone, as when a study was moved to another machine, take the copy in `folder`.

    Raises:
        UsageError: a file that cannot be read, a malformed item, `safety` without prompts, a name given twice.
    """
    made = [
        (kept and _kept(name, folder, (harmful, harmless), max_generated))
        or _suite(name, miniature, folder, (harmful, harmless), max_generated)
        for name in names
    ]
    labels = [suite.name for suite in made]
    repeated = [label for label in labels if labels.count(label) > 1]
    if repeated:
        raise UsageError(f"suites: '{repeated[0]}' is there twice")
    if (harmful or harmless) and "safety" not in labels:
        raise UsageError("harmful, harmless: prompts were given, but the suite `safety` was not asked for")
    return made


def _suite(
    name: str, miniature: bool, folder: Path, prompts: tuple[str | None, str | None], max_generated: int
) -> Suite:
    path = Path(name).expanduser()
    if path.suffix == ".jsonl":
        rows, label = items.read_items(path), items.task_name(path.stem)
        return _local(label, "answers", {label: rows}, folder, max_generated)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UsageError(f"{name}: no such file")
        return Suite(items.task_name(path.stem), "answers", (path.resolve(),))
    if name == "safety":
        return _safety(miniature, folder, prompts, max_generated)
    if name in BUILT_IN and miniature:
        rows = [
            {
                "id": row["id"],
                "prompt": row["prompt"],
                "answers": [row["answer"]],
                "category": row["kind"],
                "cluster": "",
            }
            for row in _miniature_rows(name)
        ]
        return _local(name, "answers", {f"miniature_{name}": rows}, folder, max_generated)
    if name in STOCK:
        return Suite(name, "answers", STOCK[name])
    return Suite(items.task_name(name), "answers", (name,))


def _kept(name: str, folder: Path, prompts: tuple[str | None, str | None], max_generated: int) -> Suite | None:
    """A suite of the items that were copied into the folder, where the file that they came from is gone."""
    path, parts = Path(name).expanduser(), ("safety_harmful", "safety_harmless")
    gone = [text for text in ([name] if name != "safety" else prompts) if text is not None and _gone(text)]
    tasks = parts if name == "safety" else (items.task_name(path.stem),)
    copies = {task: folder / f"{task}.jsonl" for task in tasks}
    if not gone or not all(copy.is_file() for copy in copies.values()):
        return None
    rows = {task: [row for _, row in files.json_rows(copy)] for task, copy in copies.items()}
    made = _local(
        tasks[0] if name != "safety" else name,
        "refusals" if name == "safety" else "answers",
        rows,
        folder,
        max_generated,
    )
    return replace(made, note=f"{gone[0]}: no such file; the copy of its items in {folder} is asked")


def _gone(source: str) -> bool:
    path = Path(source).expanduser()
    return path.suffix in FILES and not path.exists()


def _miniature_rows(name: str) -> list[dict[str, Any]]:
    """A test corpus in an order that mixes its kinds, so that the first so many items are a fair sample."""
    from ..data.miniature import rows

    return sorted(rows(name), key=lambda row: _digest(str(row["prompt"])))


def _safety(miniature: bool, folder: Path, given: tuple[str | None, str | None], max_generated: int) -> Suite:
    """Harmful prompts and harmless look-alikes: always both, since a model that refuses everything is not safe."""
    if given == (None, None) and miniature:
        parts = {
            name: Prompts([str(row["prompt"]) for row in _miniature_rows(name)], [r["kind"] for r in _rows(name)])
            for name in ("harmful", "harmless")
        }
    elif given[0] is None or given[1] is None:
        missing = " and ".join(f"--{n}" for n, g in zip(("harmful", "harmless"), given, strict=True) if g is None)
        raise UsageError(
            f"safety: {missing}: missing; it needs harmful prompts and harmless look-alikes, each a .csv, .txt or "
            ".jsonl file or a Hub id (AdvBench and XSTest, for example)"
        )
    else:
        parts = {"harmful": read_prompts(given[0]), "harmless": read_prompts(given[1])}
    tasks = {
        f"safety_{name}": [
            {
                "id": f"{name}-{i:05d}",
                "prompt": text,
                "expect": "refuse" if name == "harmful" else "answer",
                "category": category or name,
                "cluster": "",
            }
            for i, (text, category) in enumerate(zip(found.texts, found.categories, strict=True))
        ]
        for name, found in parts.items()
    }
    return _local("safety", "refusals", tasks, folder, max_generated)


def _rows(name: str) -> list[dict[str, Any]]:
    return _miniature_rows(name)


def _local(name: str, kind: Kind, tasks: dict[str, list[dict[str, Any]]], folder: Path, max_generated: int) -> Suite:
    judged = kind == "refusals"
    written = {
        task: items.write_task(folder, task, rows, judged=judged, max_generated=max_generated)
        for task, rows in tasks.items()
    }
    return Suite(name, kind, tuple(written.values()), local=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

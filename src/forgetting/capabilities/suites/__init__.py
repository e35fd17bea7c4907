"""Suites: `knowledge`, `reasoning` and `safety`; a user's JSONL file or lm-eval YAML; any task of lm-eval by name.

Each of the named suites is one file, listed in SUITES.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ... import files
from ...config.registry import Registry
from ...errors import UsageError
from .. import items, prompts
from ..settings import Settings
from .base import Circumstances, NamedSuite, Suite
from .knowledge import Knowledge
from .reasoning import Reasoning
from .safety import Safety

__all__ = ["SUITES", "Circumstances", "Plan", "Suite", "make_suites"]

SUITES: Registry[NamedSuite] = Registry("suite", (Knowledge(), Reasoning(), Safety()), field="suites")


@dataclass(frozen=True)
class Plan:
    """What to ask, and how.

    Attributes:
        suites: names in SUITES, .jsonl or lm-eval .yaml files, or tasks of lm-eval; if empty, all of SUITES that can be
            asked.
        settings: how suites are run.
        harmful, harmless: prompts of `safety`; the miniature has its own.
        keep_completions: whether to store replies to harmful prompts.
        max_generated: maximum tokens of a reply to a local item or prompt.
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
        """Make the suites, and write their local items to `folder`.

        Args:
            miniature: whether the base model is the miniature, which has its own items.
            folder: folder for tasks with local items.
            kept: see `make_suites`.

        Raises:
            UsageError: see `make_suites`.
        """
        at = Circumstances(miniature, folder, self.harmful, self.harmless, self.max_generated)
        names = self.suites or [name for name, suite in SUITES.items() if suite.by_default(at)]
        return make_suites(names, at, kept=kept)


def make_suites(names: Sequence[str], at: Circumstances, *, kept: bool = False) -> list[Suite]:
    """Make suites from a list of names and files.

    Args:
        names: names in SUITES, paths of .jsonl and .yaml files, or names of lm-eval tasks.
        at: the circumstances in which they are asked.
        kept: whether to use the copy in the folder if a file of items is missing, for example because a study was moved
            to another machine.

    Raises:
        UsageError: a file that cannot be read, a malformed item, `safety` without prompts, a name given twice.
    """
    made = [(_kept(name, at) if kept else None) or _suite(name, at) for name in names]
    labels = [suite.name for suite in made]
    repeated = [label for label in labels if labels.count(label) > 1]
    if repeated:
        raise UsageError(f"suites: '{repeated[0]}' occurs twice")
    written = [task for suite in made if suite.local for task in suite.tasks]
    if same := [Path(task).stem for task in written if written.count(task) > 1]:
        raise UsageError(f"suites: two would have the task '{same[0]}'; give your file of items another name")
    if (at.harmful or at.harmless) and Safety.name not in labels:
        raise UsageError("harmful, harmless: prompts were given, but not the suite `safety`")
    return made


def _suite(name: str, at: Circumstances) -> Suite:
    path = Path(name).expanduser()
    if path.suffix == ".jsonl":
        label = items.task_name(path.stem)
        return at.local(label, "answers", {label: items.read_items(path)})
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UsageError(f"{name}: no such file")
        return Suite(items.task_name(path.stem), "answers", (path.resolve(),))
    if name in SUITES:
        return SUITES[name].make(at)
    return Suite(items.task_name(name), "answers", (name,))


def _kept(name: str, at: Circumstances) -> Suite | None:
    """A suite from the copies of its items in the folder, if a file that they came from is missing; else None."""
    named = SUITES.get(name)
    label = items.task_name(Path(name).expanduser().stem) if named is None else name
    sources = {label: name} if named is None else named.files(at)
    gone = [source for source in sources.values() if _gone(source)]
    copies = {task: at.folder / f"{task}.jsonl" for task in sources}
    if not gone or not all(copy.is_file() for copy in copies.values()):
        return None
    rows = {task: [row for _, row in files.json_rows(copy)] for task, copy in copies.items()}
    made = at.local(label, "answers" if named is None else named.kind, rows)
    return replace(made, note=f"{gone[0]}: no such file; using the copy of its items in {at.folder}")


def _gone(source: str) -> bool:
    path = Path(source).expanduser()
    return path.suffix in prompts.FILES and not path.exists()

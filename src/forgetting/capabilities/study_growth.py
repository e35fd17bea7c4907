"""Answers of a growing study: copies a shorter run's answers to the longer run, and asks finished runs more items.

Answers of a deleted run are deleted when it runs again.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config.schema import ModelConfig
from ..errors import ForgettingError, UsageError
from ..files import read_text, refuse_link, refuse_links, write_atomically
from ..store.folder import RunFolder
from .answers import PAIRING, AnswerStore
from .evaluate import BASE
from .study_runs import asker_of, evaluate_run, folder_of, newtask_file
from .suites import Plan


def copy_answers(study: Path, old: str, new: str, steps: Iterable[int]) -> None:
    """Copy the answers of a shorter run to the longer run that continues it; at these steps their weights are equal."""
    store = AnswerStore(folder_of(study))
    for step in steps:
        there, here = f"{old}@{step}", f"{new}@{step}"
        for suite in store.suites(there):
            rows = [{k: v for k, v in row.items() if k not in ("model", "suite")} for row in store.read(there, suite)]
            store.write(here, here, suite, store.asked(there, suite), rows)
        if (measured := newtask_file(study, old, step)).exists():
            write_atomically(newtask_file(study, new, step), read_text(measured))


def forget_answers(study: Path, run_id: str) -> None:
    """Delete the answers of a run that begins: a deleted run of the same id gave them, perhaps with other data."""
    for old in folder_of(study).glob(f"{glob.escape(run_id)}@*"):
        shutil.rmtree(refuse_link(old, study))


def lacking(study: Path, model: ModelConfig, plan: Plan, asked: Iterable[tuple[str, int, bool]]) -> list[str]:
    """Ids of runs that, at their last step, have not answered all items that the base model has.

    Args:
        study: the study folder.
        model: the base model's configuration.
        plan: what to ask.
        asked: for each run its id, its last step, and whether to ask it in any case; otherwise it is only asked if it
            has stored answers.
    """
    store = AnswerStore(folder_of(study))
    names = [suite.name for suite in asker_of(study, model, plan).suites]
    items = {name: _items(store, BASE, name) for name in names}
    found = []
    for run_id, step, always in asked:
        name = f"{run_id}@{step}"
        if (always or store.suites(name)) and any(_items(store, name, s) != items[s] for s in names):
            found.append(run_id)
    return found


def _items(store: AnswerStore, model: str, suite: str) -> set[tuple[Any, ...]]:
    """The items of a suite that a model answered; empty if the answers are damaged, so that they are asked again."""
    try:
        return {tuple(row[name] for name in PAIRING) for row in store.read(model, suite)}
    except (ForgettingError, FileNotFoundError):
        return set()


def ask_stored(study: Path, run: RunFolder, step: int, config: Any, plan: Plan, base: Any) -> None:
    """Ask the stored weights of a finished run.

    Args:
        study: the study folder.
        run: the finished run.
        step: its last step.
        config: the study's configuration.
        plan: what to ask.
        base: the loaded base model, a `models.loading.Base`.

    Raises:
        UsageError: the run's weights are missing, or a suite is wrong.
    """
    if not (run.path / "adapter").is_dir():
        raise UsageError(
            f"{run.path}: its adapter is gone, so it cannot be asked the new items; restore it, or delete the run's "
            "folder to run it again"
        )
    refuse_links(run.path)
    pinned = config.model_copy(update={"model": base.pinned(config.model)})
    evaluate_run(study, run, pinned, plan, base.tokenizer, step)

"""A study's measurements as a table that says of each run whether its numbers count."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from forgetting.config.arguments import checked
from forgetting.store.columns import DAMAGED, LEFT_OUT, UNASKED
from forgetting.store.folder import StudyFolder
from forgetting.store.table import load_table
from forgetting.tuning.grid import asked_by


@dataclass(frozen=True)
class LeftOut:
    """Runs of a study that nothing is concluded from.

    Attributes:
        damaged: run id -> what is wrong, and what to do.
        unasked: ids of runs that the configuration does not ask for (any more).
    """

    damaged: dict[str, str] = field(default_factory=dict)
    unasked: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """What a reader must know, a line each; none where nothing is left out."""
        lines = [f"damaged, left out: {run_id}: {why}" for run_id, why in self.damaged.items()]
        if self.unasked:
            runs = "1 run" if len(self.unasked) == 1 else f"{len(self.unasked)} runs"
            lines.append(f"{runs} that the configuration no longer asks for; left out of fits: {_few(self.unasked)}")
        return lines


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


@checked
def table(study: str | os.PathLike[str]) -> pd.DataFrame:
    """A study's measurements, one row each: values, standard errors, steps, times, memory (COLUMNS).

    Rows of failed runs are there, marked by `status`; so are those of runs that the configuration does not ask for
    (`unasked`). A run whose rows are not those that were measured has one row without numbers (`damaged`).

    Args:
        study: its folder.

    Raises:
        UsageError: not a study folder.
    """
    return load_study(Path(study))


def load_study(path: Path) -> pd.DataFrame:
    """The table of `read_study`."""
    return read_study(path).table


@dataclass(frozen=True)
class StudyTable:
    """What a study has measured.

    Attributes:
        table: all rows, under the columns of COLUMNS.
        left: which of its runs nothing is concluded from.
    """

    table: pd.DataFrame
    left: LeftOut

    def counted(self) -> pd.DataFrame:
        """The rows of the runs that count, whether these ended, failed or are under way."""
        return self.table[~self.table["status"].isin(LEFT_OUT)].reset_index(drop=True)


def read_study(path: Path) -> StudyTable:
    """`load_table`, with what the study's configuration does not ask for told apart.

    Raises:
        UsageError: not a study folder, or its configuration was edited into a wrong one.
        ForgettingError: a damaged file; names it.
    """
    found, folder = load_table(path), StudyFolder.open(path)
    asked = asked_by(folder.config())
    unasked = tuple(run.id for run in folder.runs() if not asked(run))
    if unasked:
        found["status"] = found["status"].where(~found["run_id"].isin(unasked), UNASKED)
    damaged = [str(name) for name in found.loc[found["status"] == DAMAGED, "run_id"].unique()]
    return StudyTable(found, LeftOut({name: folder.run(name).damage() for name in damaged}, unasked))


def counted_runs(folder: StudyFolder, left: LeftOut) -> list[dict[str, Any]]:
    """The records of the runs that the configuration asks for; of damaged ones `status` says so, and `why` why."""
    records = []
    for run in folder.runs():
        record = {"run_id": run.id, **run.read()}
        if run.id in left.damaged:
            record |= {"status": DAMAGED, "why": left.damaged[run.id]}
        if run.id not in left.unasked:
            records.append(record)
    return records

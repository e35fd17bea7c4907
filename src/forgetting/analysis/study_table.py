"""A study's measurements as a table that marks damaged runs and runs no longer in the configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from forgetting.config.arguments import checked
from forgetting.config.schema import RunConfig, StudyConfig
from forgetting.display.numbers import few, several
from forgetting.errors import visible
from forgetting.store.axes import AXES
from forgetting.store.columns import DAMAGED, LEFT_OUT, UNASKED
from forgetting.store.folder import StudyFolder
from forgetting.store.table import load_table
from forgetting.tuning.grid import asked_by, runs_by_id
from forgetting.tuning.mitigations import label as mitigation_label


@dataclass(frozen=True)
class LeftOut:
    """Runs of a study that no fit, comparison or report uses.

    Attributes:
        damaged: run id -> what is wrong, and what to do.
        unasked: ids of runs that the configuration does not contain, or no longer contains.
        foreign: name of a folder under runs/ that belongs to no run of the study, such as a copy -> what it is.
    """

    damaged: dict[str, str] = field(default_factory=dict)
    unasked: tuple[str, ...] = ()
    foreign: dict[str, str] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """One line per damaged run and foreign folder, and one for all unasked runs; empty if nothing is left out."""
        lines = [f"damaged, left out: {run_id}: {why}" for run_id, why in self.damaged.items()]
        lines += [f"not a run of this study, left out: runs/{name}: {why}" for name, why in self.foreign.items()]
        if self.unasked:
            runs = several(len(self.unasked), "run")
            lines.append(f"{runs} that the configuration no longer asks for; left out of fits: {few(self.unasked)}")
        return lines


@checked
def table(study: str | os.PathLike[str]) -> pd.DataFrame:
    """Return a study's measurements, one row each: values, standard errors, steps, times and memory.

    The columns are those of `forgetting.store.columns.COLUMNS`. Rows of failed runs are included, marked by `status`,
    and so are those of runs that the configuration does not contain (`unasked`). A run whose files were changed or
    are incomplete has one row without numbers (`damaged`).

    Args:
        study: the study folder.

    Raises:
        UsageError: not a study folder, a link in it, or an invalid configuration.
    """
    return load_study(Path(study))


def load_study(path: Path) -> pd.DataFrame:
    """Return the table of `read_study`."""
    return read_study(path).table


@dataclass(frozen=True)
class StudyTable:
    """The measurements of a study.

    Attributes:
        config: the study's configuration.
        table: all rows, with the columns in COLUMNS.
        left: the runs that are left out of fits, comparisons and reports.
        asked: number of runs in the configuration.
        records: records of the runs that were read from plain files, by name of the run's folder.
    """

    config: StudyConfig
    table: pd.DataFrame
    left: LeftOut
    asked: int
    records: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def counted(self) -> pd.DataFrame:
        """The rows of all runs that are not left out: finished, failed and running ones."""
        return counted_rows(self.table)


def counted_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a study's table without those of damaged and unasked runs."""
    left = table["status"].isin(LEFT_OUT)
    return table[~left].reset_index(drop=True) if left.any() else table.copy(deep=False)


def read_study(path: Path) -> StudyTable:
    """Read the table of `load_table`, and mark runs that are not in the configuration as `unasked`.

    Raises:
        UsageError: not a study folder, a link in it, or an invalid configuration.
    """
    folder = StudyFolder.open(path)
    config = folder.config()
    records: dict[str, dict[str, Any]] = {}
    found = load_table(path, config, records)
    wanted = runs_by_id(config)
    asked = asked_by(wanted)
    bad = {str(name) for name in found.loc[found["status"] == DAMAGED, "run_id"].unique()}
    damaged, foreign, unasked = {}, {}, []
    for run in folder.folders() if bad else folder.runs():
        name = visible(run.id)
        if name in wanted and name in bad:
            damaged[name] = run.damage()
        elif name in bad and run.state().get("status", DAMAGED) == DAMAGED:
            foreign[name] = f"{run.flaw()}; move it out of runs/"
        elif not asked(run) and (run.path / "run.json").exists():
            unasked.append(name)
        elif name in bad:
            damaged[name] = run.damage()
    if unasked:
        found["status"] = found["status"].where(~found["run_id"].isin(unasked), UNASKED)
    for name in damaged.keys() & wanted.keys():
        for column, value in _of_grid(wanted[name]).items():
            found[column] = found[column].mask(found["run_id"] == name, value)
    if bad:
        found = found[(found["status"] != DAMAGED) | (found["dataset"] != "")].reset_index(drop=True)
    return StudyTable(config, found, LeftOut(damaged, tuple(unasked), foreign), len(wanted), records)


def _of_grid(run: RunConfig) -> dict[str, str | int | float | None]:
    """Columns from the configuration, for a run whose record is damaged."""
    return {
        "dataset": run.dataset_name,
        "method": run.method.name,
        "label": run.method.label or run.method.name,
        "mitigation": mitigation_label(run.mitigations),
        **{axis.column: axis.of([one.model_dump() for one in run.mitigations]) for axis in AXES.values()},
        "rank": run.method.options.get("rank"),
        "seed": run.seed,
    }


def counted_runs(
    folder: StudyFolder, left: LeftOut, read: Mapping[str, dict[str, Any]] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """The records of the runs in the configuration; damaged ones have `status` DAMAGED and the reason in `why`.

    Args:
        folder: the study.
        left: the runs that are left out.
        read: records that were already read, by name of the run's folder.
    """
    wanted = runs_by_id(folder.config()) if left.damaged else {}
    records = []
    for run in folder.folders() if left.damaged else folder.runs():
        name = visible(run.id)
        if name in left.damaged:
            record = run.state()
            if name in wanted:
                record |= {key: value for key, value in _of_grid(wanted[name]).items() if key not in ("method", "rank")}
                record["method"] = wanted[name].method.model_dump(mode="json", exclude={"label", "mitigations"})
            records.append({**record, "run_id": name, "status": DAMAGED, "why": left.damaged[name]})
        elif name not in left.unasked and name not in left.foreign and (record := read.get(run.id) or run.state()):
            records.append(record)
    return records

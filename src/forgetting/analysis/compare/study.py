"""The tables to compare: a study folder's, with columns that distinguish its methods, or tables from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.analysis.fit.data import column_names
from forgetting.analysis.selection import Only
from forgetting.analysis.sources import GIVEN, Source, given_table, paths_of
from forgetting.analysis.study_table import load_study
from forgetting.analysis.table_files import Table
from forgetting.analysis.tables import read_tables, split
from forgetting.config.schema import StudyConfig
from forgetting.display.commands import command
from forgetting.errors import UsageError
from forgetting.store.folder import StudyFolder

if TYPE_CHECKING:
    import pandas as pd


def study_tables(table: pd.DataFrame, runs: Sequence[Mapping[str, Any]], only: Only | None = None) -> dict[str, Table]:
    """A study's rows by data set, with a column `variant`: the options in which runs of one label and rank differ.

    Args:
        table: from `analysis.study_table.load_study`.
        runs: the run records, which contain the options.
        only: by column, the values of which a kept row has one.
    """
    rows = {str(name): table[name].tolist() for name in table.columns}
    variants = _variants(runs)
    rows["variant"] = [variants.get(str(run), "") for run in rows["run_id"]]
    return split(rows, "study", only or {}) if rows["variant"] else {}


def _variants(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Run id -> the options in which runs of its label, mitigation and rank differ, such as `alpha=16`."""
    options: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for run in runs:
        method = run.get("method") if isinstance(run.get("method"), Mapping) else {}
        own = {k: json.dumps(v) for k, v in dict(method or {}).items() if k not in ("name", "label", "mitigations")}
        same = (str(run.get("dataset")), str(run.get("label")), str(run.get("mitigation", "")), own.pop("rank", ""))
        options.setdefault(same, {})[str(run.get("run_id"))] = own
    out = {}
    for mine in options.values():
        names = sorted({name for own in mine.values() for name in own})
        differ = [n for n in names if len({own.get(n) for own in mine.values()}) > 1]
        for run_id, own in mine.items():
            out[run_id] = ", ".join(f"{n}={own[n]}" for n in differ if n in own)
    return out


def open_study(path: Path, only: Only | None = None) -> tuple[StudyConfig, dict[str, Table]]:
    """The configuration of a study folder and its rows by data set, filtered by values of columns.

    Raises:
        UsageError: not a study folder, or it has no measurements.
    """
    folder = StudyFolder.open(path)
    table = load_study(path)
    if table.empty:
        raise UsageError(f"{path}: this study has no measurements yet; run `{command('study', path)}`")
    return folder.config(), study_tables(table, [run.state() for run in folder.runs()], only)


def any_tables(source: Source, only: Only | None = None) -> dict[str, Table]:
    """The rows of any source by data set, filtered by `only`.

    Raises:
        UsageError: not a table, or a mistake in it.
    """
    paths = paths_of(source)
    if paths is not None:
        return split(read_tables(paths), paths[0].stem if len(paths) == 1 else "tables", only or {})
    table = given_table(source)
    return split({str(name): list(table[name]) for name in column_names(table)}, GIVEN, only or {})

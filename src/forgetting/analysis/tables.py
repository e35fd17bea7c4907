"""Reads tables of runs (files, study folders, PEFT results, W&B and MLflow exports), joins and splits them.

A table is a mapping from column names to lists of equal length, one entry per measurement. Cells stay as they were
read; the fit converts them to numbers, and names the row and column of a cell that is not a number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forgetting import files
from forgetting.analysis.exports import is_chart, join_charts, normalise, peft_table
from forgetting.analysis.laws.base import Array
from forgetting.analysis.selection import Only, by_dataset, chosen_rows, is_blank, part_of, row_numbers, wanted
from forgetting.analysis.table_files import (
    Table,
    from_objects,
    load_json,
    read_csv,
    read_excel,
    read_json_lines,
    read_parquet,
)
from forgetting.data.readers import holds_array
from forgetting.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

PACKABLE = (".csv", ".tsv", ".jsonl", ".json")
SUFFIXES = (*PACKABLE, ".parquet", ".xlsx")


def read_tables(paths: Sequence[str | Path]) -> Table:
    """Read one table from one or several files or folders.

    Args:
        paths: study folders, tables (.csv, .tsv, .jsonl, .json, .parquet, .xlsx), or PEFT result files or folders of
            them. Exports of W&B charts, with or without the export of the runs table, are joined by run and step;
            other tables are concatenated.

    Raises:
        UsageError: a file is missing, of another kind, or damaged.
    """
    if not paths:
        raise UsageError("no table given")
    tables = [(Path(p), read_table(p)) for p in paths]
    charts = [t for _, t in tables if is_chart(t)]
    if charts:
        return join_charts(charts, [t for _, t in tables if not is_chart(t)])
    if len(tables) == 1:
        return tables[0][1]
    stems = Counter(path.stem for path, _ in tables)
    for path, table in tables:
        # a study's runs have unique names, which reveal the same rows in two tables
        if "run_id" in table and "measure_start" not in table:
            name = path.stem if stems[path.stem] == 1 else str(path)
            table["run_id"] = [v if is_blank(v) else f"{name}/{v}" for v in table["run_id"]]
    return stack([t for _, t in tables])


def read_table(path: str | Path) -> Table:
    """Read one file or folder; see `read_tables`."""
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if suffix in files.PACKED:
        suffix = path.with_suffix("").suffix.lower() if path.with_suffix("").suffix.lower() in PACKABLE else suffix
    if suffix == ".json" or (suffix == ".jsonl" and holds_array(path)):
        return _read_json(path)
    readers = {".csv": read_csv, ".tsv": read_csv, ".jsonl": read_json_lines, ".parquet": read_parquet}
    reader = (readers | {".xlsx": read_excel}).get(suffix)
    if reader is not None:
        return normalise(reader(path))
    raise UsageError(
        f"{path}: not a table; allowed: {', '.join(SUFFIXES)}, text also as .gz or .zst, or a study folder"
    )


def stack(tables: Sequence[Table]) -> Table:
    """Concatenate tables; cells of a column that a table lacks are None."""
    names = dict.fromkeys(name for table in tables for name in table)
    out: Table = {name: [] for name in names}
    for table in tables:
        count = rows(table)
        for name in names:
            out[name] += table.get(name, [None] * count)
    return out


def split(table: Table, label: str, only: Only, dataset: str | None = None) -> dict[str, Table]:
    """Split a table by data set; without a column `dataset`, there is one part with the name `label`.

    Args:
        table: the table to split.
        label: the name for a table without a column `dataset`.
        only: by column, the values of which a kept row has one; see `selection.chosen_rows`.
        dataset: keep this data set.

    Raises:
        UsageError: an unknown column or data set, or no row left.
    """
    at = _kept(table, list(table), label, only, dataset)
    groups = {label: at}
    if "dataset" in table:
        parts = by_dataset([table["dataset"][i] for i in at], label, row_numbers(table)[at])
        groups = {name: at[part] for name, part in parts.items()}
    return {name: part_of(table, part) for name, part in groups.items()}


def split_frame(
    frame: pd.DataFrame, only: Only, dataset: str | None = None, label: str = "study"
) -> dict[str, pd.DataFrame]:
    """`split` for a DataFrame, such as a study's own table, which may have a million rows.

    Args:
        frame: as from `store.load_table`.
        only: by column, the values of which a kept row has one; see `selection.chosen_rows`.
        dataset: keep this data set.
        label: the name for a table without a column `dataset`.

    Raises:
        UsageError: an unknown column or data set, or no row left.
    """
    kept = _kept(frame, [str(name) for name in frame.columns], label, only, dataset)
    frame = frame if len(kept) == len(frame) else frame.iloc[kept]
    if "dataset" not in frame:
        return {label: frame}
    parts = by_dataset(frame["dataset"], label, row_numbers(frame))
    return {name: frame if len(part) == len(frame) else frame.iloc[part] for name, part in parts.items()}


def _kept(table: Any, present: Sequence[str], label: str, only: Only, dataset: str | None) -> Array:
    """Indices of the rows that have, in each filtered column, one of its values."""
    filters = [*wanted(only).items(), *([] if dataset is None else [("dataset", (dataset,))])]
    keep: Any = None
    for name, values in filters:
        if name not in present:
            raise UsageError(f"table '{label}' has no column '{name}'; {did_you_mean(name, present)}")
        found = chosen_rows(table[name], values, name)
        keep = found if keep is None else keep & found
    if keep is None:
        keep = np.ones(len(table[present[0]]) if present else 0, dtype=bool)
    if not keep.any():
        asked = ", ".join(f"{name}={' or '.join(map(str, values))}" for name, values in filters)
        raise UsageError(f"table '{label}' has no row" + (f" with {asked}" if asked else ""))
    return np.flatnonzero(keep)


def later(table: Table, step: float) -> Table:
    """The rows from this step on.

    Raises:
        UsageError: there is no column `step`, or one of its cells is not a number.
    """
    if "step" not in table:
        raise UsageError("the table has no column 'step', so early steps cannot be left out")
    try:
        keep = [i for i, v in enumerate(table["step"]) if _number(v) >= step]
    except (TypeError, ValueError, OverflowError):
        bad = next(i for i, v in enumerate(table["step"]) if not _is_number(v))
        raise UsageError(f"row {bad + 1}, column 'step': '{table['step'][bad]}' is not a number") from None
    return part_of(table, keep)


def _number(cell: Any) -> float:
    if math.isnan(found := float(cell)):
        raise ValueError
    return found


def _is_number(cell: Any) -> bool:
    try:
        _number(cell)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def rows(table: Table) -> int:
    """Number of rows of a table."""
    return len(next(iter(table.values()), []))


def _read_folder(path: Path) -> Table:
    if (path / "study.yaml").exists():
        from forgetting.analysis.study_table import load_study

        frame = load_study(path)
        return {str(name): frame[name].tolist() for name in frame.columns}
    results = sorted(path.glob("*.json"))
    if not results:
        raise UsageError(f"{path}: neither a study folder (no study.yaml) nor a folder of PEFT results (no .json)")
    return peft_table([(file, load_json(file)) for file in results])


def _read_json(path: Path) -> Table:
    content = load_json(path)
    if isinstance(content, dict) and "run_info" in content:
        return peft_table([(path, content)])
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        return normalise(from_objects(path, content))
    raise UsageError(f"{path}: neither a list of objects, one per measurement, nor a PEFT result")

"""The tables that functions and commands accept: paths, study folders, DataFrames, Datasets, columns or rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from forgetting.analysis.exports import normalise
from forgetting.analysis.fit.data import column_names
from forgetting.analysis.laws import Law
from forgetting.analysis.selection import Only, numbered
from forgetting.analysis.tables import later, read_tables, rows, split, split_frame
from forgetting.config.arguments import ColumnTable, RowTable, columns_of, is_frame, wrong_type
from forgetting.errors import UsageError
from forgetting.store.axes import AXES
from forgetting.store.columns import LEFT_OUT, UNASKED

if TYPE_CHECKING:
    import pandas as pd


class HasFolder(Protocol):
    """An object with a study folder, such as a study's result."""

    @property
    def folder(self) -> Path:
        """The study folder."""


Source = (
    str
    | os.PathLike[str]
    | Sequence[str | os.PathLike[str]]
    | ColumnTable
    | RowTable
    | Mapping[str, Sequence[Any]]
    | Sequence[Mapping[str, Any]]
    | HasFolder
)
"""Paths of tables or study folders, a study's result, a DataFrame, a datasets.Dataset, a dictionary of columns, or a
list of rows."""
ALLOWED = (
    "the path of a table or study folder (or a list of them), a study's result, a DataFrame, a datasets.Dataset, a "
    "dictionary of columns, a list of rows"
)
STUDY_COLUMNS = {"measure_start", "step"}
"""Columns that only a study's own table has together; from such a table, `rows_to_fit` selects the rows to fit."""
GIVEN = "table"
"""Name of a table that is not a file, in messages."""


@dataclass(frozen=True)
class Tables:
    """The rows to fit, by data set.

    Attributes:
        plain: rows of runs without mitigation if the table is a study's, else all rows.
        along: for each law over an option of a mitigation, the same rows and those of runs with only that mitigation;
            laws without such runs are left out.
    """

    plain: dict[str, Any]
    along: dict[str, dict[str, Any]]

    def of(self, law: Law) -> dict[str, Any]:
        """The rows for a law; runs with a mitigation only if its option is one of the law's variables.

        Raises:
            UsageError: the law has several such variables, and the study varied one.
        """
        axes = [axis for axis in AXES.values() if axis.column in law.variable_names]
        if len(axes) > 1 and self.along:
            raise UsageError(
                f"law '{law.called}' has {' and '.join(axis.column for axis in axes)}: runs with several mitigations "
                "are in no fit, so give a law over one of them"
            )
        return self.along.get(axes[0].name, self.plain) if axes else self.plain


def tables_to_fit(source: Source, *, only: Only, from_step: float | None = None, dataset: str | None = None) -> Tables:
    """The rows to fit, by data set, or by file name if the table has no column `dataset`.

    From a study's own table (a folder, the CSV of `forgetting table` or a DataFrame), these are the rows that its
    report fits: runs of the first method without mitigation, from `measure_start` on. For a law over an option of a
    mitigation (`store.axes`), runs with that mitigation alone are added.

    Args:
        source: one table, or paths of several.
        only: by column, the values of which a kept row has one.
        from_step: leave out earlier steps; None means from a study's own `measure_start`, or all steps of another
            table.
        dataset: keep only this data set.

    Raises:
        UsageError: not a table, an invalid table, or no row left.
    """
    paths = paths_of(source)
    label = GIVEN if paths is None else paths[0].stem if len(paths) == 1 else "tables"
    table = given_table(source) if paths is None else _read(paths)
    table = numbered(table) if is_frame(table) else table
    wider: dict[str, pd.DataFrame] = {}
    if set(column_names(table)) >= STUDY_COLUMNS:
        from forgetting.store.table import rows_to_fit

        plain, along = rows_to_fit(_frame(table), start=from_step, chosen=only)
        table = _without_unasked_alone(plain)
        wider = {name: _without_unasked_alone(of_law) for name, of_law in along.items()}
    elif from_step is not None:
        table = later_frame(table, from_step) if is_frame(table) else later(table, from_step)
    if not (_counted(table) if is_frame(table) else rows(table)):
        start = "" if from_step is None else f" from step {from_step:g} on"
        left = (
            " except those of runs that are damaged or no longer in the configuration"
            if len(table) and is_frame(table)
            else ""
        )
        raise UsageError(f"'{label}' has no row to fit{start}{left}")
    if not is_frame(table):
        columns = split(table, label, only, dataset)
        return Tables(columns, {})
    found = split_frame(table, only, dataset, label)
    return Tables(found, {name: split_frame(rows, only, dataset, label) for name, rows in wider.items()})


def _counted(table: pd.DataFrame) -> int:
    """Number of rows of runs that are neither damaged nor outside the configuration."""
    return len(table) - int(table["status"].isin(LEFT_OUT).sum() if "status" in table else 0)


def _without_unasked_alone(table: pd.DataFrame) -> pd.DataFrame:
    """A study's rows without data sets whose runs are all outside the configuration."""
    if not {"dataset", "status"} <= set(table):
        return table
    asked = table["status"] != UNASKED
    if asked.all() or not asked.any():
        return table
    return table[table["dataset"].isin(table.loc[asked, "dataset"].unique())]


def _read(paths: Sequence[Path]) -> Any:
    """Read files as columns, but a single study folder, which may have a million rows, as a DataFrame."""
    if len(paths) == 1 and (paths[0] / "study.yaml").exists():
        from forgetting.analysis.study_table import load_study

        return load_study(paths[0])
    return read_tables(paths)


def _frame(table: Any) -> Any:
    import pandas as pd

    return table if is_frame(table) else numbered(pd.DataFrame(table))


def paths_of(source: Source) -> list[Path] | None:
    """The paths, if the source is one or more paths or a study's result; None if it is a table.

    Raises:
        UsageError: an empty path or list, or an item that is not a path.
    """
    if isinstance(folder := getattr(source, "folder", None), Path):
        return [folder]
    if isinstance(source, str | os.PathLike):
        source = [source]
    if not isinstance(source, list | tuple) or (source and isinstance(source[0], Mapping)):
        return None
    if not source or not all(isinstance(path, str | os.PathLike) and str(path) for path in source):
        wrong = next((path for path in source if not isinstance(path, str | os.PathLike)), "")
        raise wrong_type(GIVEN, wrong if source else source, ALLOWED)
    return [Path(path) for path in source]


def given_table(source: Source) -> Any:
    """A table that is not a file, with our column names: a DataFrame, or columns by name.

    Raises:
        UsageError: not a table, a column occurs twice, or there are no rows.
    """
    if is_frame(source):
        import pandas as pd

        frame: Any = source
        names = [str(name) for name in frame.columns]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"{GIVEN}: column '{doubled[0]}' occurs twice")
        found: Any = pd.DataFrame(normalise({str(name): frame[name] for name in frame.columns}))
        size = len(found)
    else:
        columns = columns_of(source, GIVEN)
        if columns is None:
            raise wrong_type(GIVEN, source, ALLOWED)
        found = normalise(columns)
        size = rows(found)
    if not size:
        raise UsageError(f"{GIVEN}: it has no rows")
    return found


def later_frame(frame: pd.DataFrame, step: float) -> pd.DataFrame:
    """The rows from this step on.

    Raises:
        UsageError: no column `step`, or a step that is not a number.
    """
    import pandas as pd

    later({name: frame[name].tolist() for name in ("step",) if name in frame}, step)  # only for its errors
    return frame[pd.to_numeric(frame["step"]) >= step]

"""Reads a table into arrays; errors name the row and column. Works without pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from forgetting.analysis.fit.cells import Where, loose, numbers
from forgetting.analysis.fit.runs import RUN, columns_of_runs, find_runs
from forgetting.analysis.laws.base import Array, Law, Variable
from forgetting.analysis.selection import (
    DONE,
    GAP,
    cell_at,
    coded,
    is_missing,
    row_numbers,
    rows_left_out,
    status_of,
    without_status,
)
from forgetting.display.numbers import few, several
from forgetting.errors import UsageError, did_you_mean
from forgetting.store.columns import UNASKED

KEPT_ROWS = 5000
"""Most rows that a fit keeps for its chart."""
SPARSE = 4
"""If the largest code is below this many times the number of codes, a lookup table renumbers them, not a sort."""
USEFUL = ("rank", "step", "trainable_params", "forgetting_floor", "finetune_loss_se")
"""Optional columns of numbers that a fit uses."""
FINITE = Variable("output", positive=False)


@dataclass(frozen=True)
class Data:
    """The part of a table that a law needs.

    Attributes:
        x: [n] values for each variable of the law.
        y: [O, n] outputs of the law.
        se: [O, n] standard errors of the outputs, or None.
        run: [n] run index of each row, or its group's index if runs are resampled in groups.
        runs: names of the runs or groups.
        independent: whether every row counts as a run because the table does not identify runs.
        columns: further columns that a fit can use (`rank`, `finetune_loss_se`, ...).
        warnings: sentences on what was left out and why, and on how runs were identified.
        iid: whether every row counts as a run because the user asked for it.
        row: [n] number of each row in the table that was given, from 0, or None.
        sampled_from: numbers of rows and runs that these rows are a sample of; None if these are all.
        by: the columns that define groups of runs; empty if runs are resampled one by one.
        inner: [n] the run of each row if runs are resampled in groups; else None.
    """

    x: dict[str, Array]
    y: Array
    se: Array | None
    run: Array
    runs: tuple[str, ...]
    independent: bool
    columns: dict[str, Array]
    warnings: tuple[str, ...] = ()
    iid: bool = False
    row: Array | None = None
    sampled_from: tuple[int, int] | None = None
    by: tuple[str, ...] = ()
    inner: Array | None = None

    @property
    def n_runs(self) -> int:
        """Number of runs, even if they are resampled in groups."""
        return len(self.runs) if self.inner is None else int(np.unique(self.inner).size)

    @property
    def unit(self) -> str:
        """What is resampled: `row`, `run`, or `group` (of runs)."""
        return "row" if self.independent or self.iid else "group" if self.by else "run"

    @property
    def grouping(self) -> dict[str, Any]:
        """For diagnostics: the columns and number of groups of runs; empty if runs are resampled one by one."""
        return {"groups": {"by": list(self.by), "count": len(self.runs)}} if self.by else {}

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.y.shape[1])

    @cached_property
    def cells(self) -> tuple[Array, Array]:
        """The first row of each cell, and the cell of each row [n]; rows with equal variables form a cell."""
        code = np.zeros(self.n, dtype=np.int64)
        for values in self.x.values():
            different = np.unique(values)
            # renumber after each variable, so that the product of their counts cannot overflow
            code = _renumbered(code * len(different) + np.searchsorted(different, values))
        first = np.full(int(code.max(initial=-1)) + 1, self.n)
        np.minimum.at(first, code, np.arange(self.n))
        return first, code

    def take(self, rows: Array) -> Data:
        """The data with only the rows of a boolean mask; runs are renumbered."""
        kept, run = np.unique(self.run[rows], return_inverse=True)
        return Data(
            {k: v[rows] for k, v in self.x.items()},
            self.y[:, rows],
            None if self.se is None else self.se[:, rows],
            run,
            tuple(self.runs[i] for i in kept),
            self.independent,
            {k: v[rows] for k, v in self.columns.items()},
            self.warnings,
            self.iid,
            None if self.row is None else self.row[rows],
            self.sampled_from,
            self.by,
            None if self.inner is None else self.inner[rows],
        )

    def sample(self, most: int) -> Data:
        """At most `most` rows, evenly spaced."""
        if self.n <= most:
            return self
        return self.take(np.arange(self.n) % -(-self.n // most) == 0)


def _renumbered(code: Array) -> Array:
    """Codes from 0 without gaps, in the same order."""
    top = int(code.max(initial=-1)) + 1
    if top > SPARSE * code.size:
        return np.unique(code, return_inverse=True)[1]
    there = np.zeros(top, dtype=bool)
    there[code] = True
    return np.asarray((np.cumsum(there) - 1)[code])


def column_names(table: Any) -> list[str]:
    """The names of a table's columns; the table is a DataFrame or a mapping."""
    return [str(name) for name in (table.columns if hasattr(table, "columns") else table)]


def read_data(
    law: Law,
    table: Any,
    *,
    columns: Mapping[str, str] | None = None,
    label: str = "",
    run: str | Sequence[str] = RUN,
    iid: bool = False,
    whole: bool = False,
) -> Data:
    """Read what a law needs from a table.

    Args:
        law: names the variables and outputs.
        table: a DataFrame, or a mapping from column names to sequences of equal length.
        columns: the table's column for a variable or output, if its name differs.
        label: the table's name in messages.
        run: the column, or columns, that identify the run of each row; several runs that agree in them are resampled
            together. In a table without `run_id`, the default, other columns identify runs if possible; otherwise
            every row is a run.
        iid: treat every row as a run of its own.
        whole: refuse rows with a missing value; otherwise they are left out with a warning.

    Raises:
        UsageError: a column is missing; a cell is not a number, not finite, or not positive although it must be; a
            run has the same measurement twice; a number is too large or small; no row is left; or both `run` and
            `iid` were given.
    """
    where = Where(f"table '{label}'" if label else "table", row_numbers(table))
    columns = dict(columns or {})
    needed = [*law.variable_names, *law.outputs]
    for name in columns:
        if name not in needed:
            raise UsageError(f"law '{law.called}' has no '{name}' to map a column to; {did_you_mean(name, needed)}")
    present = column_names(table)
    by = columns_of_runs(run, present, where.name)
    if iid and by != (RUN,):
        raise UsageError(f"give the column of runs ('{', '.join(by)}') or independent rows (iid), not both")
    rows, warnings = _done_rows(table, present, by)
    sources = {name: columns.get(name, name) for name in needed}
    _refuse_absent(law, sources, present, where)
    if rows.size == 0:
        raise UsageError(f"{where} has no rows to fit")
    rows, gaps = (rows, []) if whole else _without_gaps(table, list(sources.values()), rows, where)
    kinds = {v.name: v for v in (*law.variables, *(Variable(name, zero=True) for name in law.not_negative))}
    got = {
        name: numbers(table[column], column, rows, where, kinds.get(name, FINITE)) for name, column in sources.items()
    }
    se = _standard_errors(law, table, columns, present, rows, where)
    found = find_runs(table, by, present, rows, got, where)
    names, codes, inner = found.names, found.code, found.inner
    alone = iid or not names
    if alone:
        names, codes, inner = tuple(str(i) for i in rows), np.arange(rows.size), None
    extra = _useful(table, columns, present, rows, where)
    x, y = {name: got[name] for name in law.variable_names}, np.stack([got[name] for name in law.outputs])
    said = (*warnings, *gaps, *found.warnings)
    by = () if inner is None else by
    row = where.numbers[rows]
    return Data(x, y, se, codes, names, alone and not iid, extra, said, iid, row, by=by, inner=inner)


def _refuse_absent(law: Law, sources: Mapping[str, str], present: Sequence[str], where: Where) -> None:
    for name, column in sources.items():
        if column not in present:
            raise UsageError(
                f"{where} has no column '{column}', which law '{law.called}' needs as '{name}'; "
                f"{did_you_mean(column, present)}; map another column with {name}=COLUMN"
            )


def _without_gaps(table: Any, needed: Sequence[str], rows: Array, where: Where) -> tuple[Array, list[str]]:
    """The rows without missing values in the required columns, and a warning about the others."""
    gap = {name: _gaps(table[name], rows) for name in needed}
    lost = np.logical_or.reduce(list(gap.values()))
    if not lost.any():
        return rows, []
    first = int(np.flatnonzero(lost)[0])
    name = next(name for name in needed if gap[name][first])
    named = cell_at(where.numbers[rows[first]], name, np.asarray(table[name], dtype=object)[rows[first]])
    if lost.all():
        raise UsageError(f"{where} has no row with a number in each of {', '.join(needed)} ({named})")
    count = int(lost.sum())
    what = f"{count} of {rows.size} rows {'was' if count == 1 else 'were'}"
    return rows[~lost], [rows_left_out(what, count, GAP, named)]


def _gaps(column: Any, rows: Array) -> Array:
    """[n] which of a column's rows have a missing value."""
    if getattr(getattr(column, "dtype", None), "kind", "O") in "iuf":
        return np.asarray(np.isnan(np.asarray(column, dtype=float)[rows]))
    return np.array([is_missing(cell) for cell in np.asarray(column, dtype=object)[rows]], dtype=bool)


def _useful(table: Any, columns: Mapping[str, str], present: list[str], rows: Array, where: Where) -> dict[str, Array]:
    """Optional columns that are present: those of USEFUL, an index of each row's seed (or NaN), and the data set.

    The standard error of a variable that is read from another column (`columns`) is that column's.
    """
    sources = {name: name for name in USEFUL}
    sources |= {f"{name}_se": f"{column}_se" for name, column in columns.items() if f"{name}_se" in USEFUL}
    extra = {name: loose(table[column], column, rows, where) for name, column in sources.items() if column in present}
    if "seed" in present:
        names, place = coded(table["seed"])
        known = np.array([not is_missing(name) for name in names], dtype=bool)
        extra["seed"] = np.where(known[place[rows]], place[rows], np.nan)
    if "dataset" in present:
        sets, place = coded(table["dataset"])
        extra["dataset"] = np.array(sets)[place[rows]]
    return extra


def _done_rows(table: Any, present: list[str], by: tuple[str, ...]) -> tuple[Array, list[str]]:
    """Row numbers, from 0, of finished runs, and warnings that name the other runs."""
    count = len(table[present[0]]) if present else 0
    if "status" not in present:
        return np.arange(count), []
    states, state = coded(table["status"])
    done = np.array([status_of(name) == DONE for name in states], dtype=bool)[state]
    said = without_status(table["status"])
    if done.all():
        return np.arange(count), said
    left = np.flatnonzero(~done)
    run = by[0] if len(by) == 1 else RUN
    names = [str(v) for v in np.asarray(table[run], dtype=object)[left]] if run in present else None
    named = sorted(set(zip(names, (states[s] for s in state[left]), strict=True))) if names else []
    unasked = [name for name, status in named if status == UNASKED]
    if unasked:
        runs = several(len(unasked), "run")
        said.append(f"{runs} that the configuration no longer asks for; left out: {few(unasked)}")
    others = [f"{name} ({status})" for name, status in named if status != UNASKED]
    if others or not named:
        count = sum(not named or states[s] != UNASKED for s in state[left])
        were = f"{several(count, 'row')} of runs that are not done {'was' if count == 1 else 'were'}"
        said.append(f"{were} left out: {few(others) or 'unnamed'}")
    return np.flatnonzero(done), said


def _standard_errors(
    law: Law, table: Any, columns: Mapping[str, str], present: Sequence[str], rows: Array, where: Where
) -> Array | None:
    """[O, n] of the outputs' `..._se` columns; None unless every output has one with only positive numbers."""
    names = [f"{columns.get(o, o)}_se" for o in law.outputs]
    if not all(name in present for name in names):
        return None
    se = np.stack([loose(table[name], name, rows, where) for name in names])
    return se if (np.isfinite(se) & (se > 0)).all() else None

"""Reads a table into arrays; errors name the row and column. Works without pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from forgetting.analysis.laws.base import Array, Law, Variable
from forgetting.analysis.named_runs import told_runs
from forgetting.analysis.selection import GAP, cell_at, coded, is_missing, rows_left_out
from forgetting.display.numbers import few, several
from forgetting.errors import UsageError, did_you_mean
from forgetting.store.columns import UNASKED

DONE = "done"
KEPT_ROWS = 5000
"""Most rows that a fit keeps for its chart."""
SPARSE = 4
"""Codes up to this many times their number are renumbered by a table instead of by sorting."""
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
        run: [n] run index of each row.
        runs: names of the runs.
        independent: whether every row counts as a run because the table does not identify runs.
        columns: further columns that a fit can use (`rank`, `finetune_loss_se`, ...).
        warnings: what was left out, and why.
        iid: whether every row counts as a run because the user asked for it.
        row: [n] number of each row in the table, from 0.
        sampled_from: numbers of rows and runs of which these are a sample; None if these are all.
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

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.y.shape[1])

    @cached_property
    def cells(self) -> tuple[Array, Array]:
        """The first row of each cell, and [n] the cell of each row; rows with equal variables form a cell."""
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
        )

    def sample(self, most: int) -> Data:
        """At most so many rows, evenly spaced."""
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
    run: str = "run_id",
    iid: bool = False,
    whole: bool = False,
) -> Data:
    """Read what a law needs from a table.

    Args:
        law: names the variables and outputs.
        table: a DataFrame, or a mapping from column names to sequences of equal length.
        columns: the table's column for a variable or output, if its name differs.
        label: the table's name in messages.
        run: the column that identifies the run of each row. Without it, runs are identified by other columns if
            possible; otherwise every row is a run.
        iid: treat every row as a run in any case.
        whole: refuse rows with a missing value; otherwise they are left out with a warning.

    Raises:
        UsageError: a column is missing; a cell is not a number, not finite, or not positive although it must be; a
            run has the same measurement twice; or no row is left.
    """
    where = f"table '{label}'" if label else "table"
    columns = dict(columns or {})
    needed = [*law.variable_names, *law.outputs]
    for name in columns:
        if name not in needed:
            raise UsageError(f"law '{law.called}' has no '{name}' to map a column to; {did_you_mean(name, needed)}")
    present = column_names(table)
    if iid and run != "run_id":
        raise UsageError(f"give the column of runs ('{run}') or independent rows (iid), not both")
    if run not in present and run != "run_id":
        raise UsageError(
            f"{where} has no column '{run}' that says which rows belong to one run; {did_you_mean(run, present)}"
        )
    rows, warnings = _done_rows(table, present, run)
    sources = {name: columns.get(name, name) for name in needed}
    _refuse_absent(law, sources, present, where)
    if rows.size == 0:
        raise UsageError(f"{where} has no rows to fit")
    rows, gaps = (rows, []) if whole else _without_gaps(table, list(sources.values()), rows, where)
    kinds = {v.name: v for v in (*law.variables, *(Variable(name, zero=True) for name in law.not_negative))}
    got = {
        name: _numbers(table[column], column, rows, where, kinds.get(name, FINITE)) for name, column in sources.items()
    }
    se = _standard_errors(law, table, columns, present, rows)
    names, codes, copied = _runs(table, run, present, rows, got, where)
    alone = iid or not names
    if alone:
        names, codes = [str(i) for i in rows], np.arange(rows.size)
    extra = _useful(table, present, rows)
    x, y = {name: got[name] for name in law.variable_names}, np.stack([got[name] for name in law.outputs])
    return Data(x, y, se, codes, tuple(names), alone and not iid, extra, (*warnings, *gaps, *copied), iid, rows)


def _refuse_absent(law: Law, sources: Mapping[str, str], present: Sequence[str], where: str) -> None:
    for name, column in sources.items():
        if column not in present:
            raise UsageError(
                f"{where} has no column '{column}', which law '{law.called}' needs as '{name}'; "
                f"{did_you_mean(column, present)}; map another column with {name}=COLUMN"
            )


def _without_gaps(table: Any, needed: Sequence[str], rows: Array, where: str) -> tuple[Array, list[str]]:
    """The rows without missing values in the required columns, and a warning about the others."""
    gap = {name: _gaps(table[name], rows) for name in needed}
    lost = np.logical_or.reduce(list(gap.values()))
    if not lost.any():
        return rows, []
    first = int(np.flatnonzero(lost)[0])
    name = next(name for name in needed if gap[name][first])
    named = cell_at(rows[first], name, np.asarray(table[name], dtype=object)[rows[first]])
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


def _useful(table: Any, present: list[str], rows: Array) -> dict[str, Array]:
    """Optional columns that a fit uses if present: numbers, the number of each seed, and the names of data sets."""
    extra = {name: _loose(table[name], rows) for name in USEFUL if name in present}
    if "seed" in present:
        names, place = coded(table["seed"])
        known = np.array([not is_missing(name) for name in names], dtype=bool)
        extra["seed"] = np.where(known[place[rows]], place[rows], np.nan)
    if "dataset" in present:
        sets, place = coded(table["dataset"])
        extra["dataset"] = np.array(sets)[place[rows]]
    return extra


def _runs(
    table: Any, run: str, present: list[str], rows: Array, got: Mapping[str, Array], where: str
) -> tuple[list[str], Array, list[str]]:
    """Names of the runs, [n] run index of each row, and warnings about duplicate rows and about how runs were found."""
    if run not in present:
        return _told(table, present, rows, got)
    there, code = coded(table[run])
    _refuse_blank(there, code, run, rows, where)
    if not _steps_differ(table, present, rows, code[rows]):
        _refuse_duplicates(table, present, rows, [there[i] for i in code[rows]], got, where)
    used, codes = np.unique(code[rows], return_inverse=True)
    return [there[i] for i in used], codes, []


def _told(table: Any, present: list[str], rows: Array, got: Mapping[str, Array]) -> tuple[list[str], Array, list[str]]:
    """The runs of a table without names of runs, identified by other columns if steps increase within each."""
    copies = _copies(table, present, rows, got)
    hint = ["if column 'run' says which rows belong to one run, give --run run (run='run')"] if "run" in present else []
    if "step" not in present:
        return [], rows, [*copies, *hint]
    told = told_runs(table, present, rows, _loose(table["step"], rows))
    if told.clash is not None or not 1 < len(told.names) < rows.size:
        return [], rows, [*copies, *hint]
    said = f"the table has no column 'run_id': treating rows with the same {', '.join(told.columns)} as one run"
    return (
        list(told.names),
        told.code,
        [f"{said} ({several(len(told.names), 'run')}); choose another column of runs with --run COLUMN"],
    )


def _done_rows(table: Any, present: list[str], run: str) -> tuple[Array, list[str]]:
    """Row numbers, from 0, of finished runs, and warnings that name the other runs."""
    count = len(table[present[0]]) if present else 0
    if "status" not in present:
        return np.arange(count), []
    states, state = coded(table["status"])
    done = np.array([name == DONE for name in states], dtype=bool)[state]
    if done.all():
        return np.arange(count), []
    left = np.flatnonzero(~done)
    names = [str(v) for v in np.asarray(table[run], dtype=object)[left]] if run in present else None
    named = sorted(set(zip(names, (states[s] for s in state[left]), strict=True))) if names else []
    said = []
    unasked = [name for name, status in named if status == UNASKED]
    if unasked:
        runs = several(len(unasked), "run")
        said.append(f"{runs} that the configuration no longer asks for; left out: {few(unasked)}")
    others = [f"{name} ({status})" for name, status in named if status != UNASKED]
    if others or not named:
        count = sum(states[s] != UNASKED for s in state[left])
        were = f"{several(count, 'row')} of runs that are not done {'was' if count == 1 else 'were'}"
        said.append(f"{were} left out: {few(others) or 'unnamed'}")
    return np.flatnonzero(done), said


def _refuse_blank(texts: list[str], code: Array, name: str, rows: Array, where: str) -> None:
    """Refuse rows without a name of their run, because together they would look like one run."""
    # recognise pandas' missing value by its name, because comparing with it does not give a bool
    empty = np.array([text.strip() in ("", "nan", "None", "<NA>") for text in texts], dtype=bool)
    blank = rows[empty[code[rows]]]
    if blank.size:
        raise UsageError(
            f"{where}, row {blank[0] + 1}, column '{name}': blank"
            + (f", as in {several(len(blank) - 1, 'other row')}" if len(blank) > 1 else "")
            + "; name the run of every row, or leave the column out if every row is its own run"
        )


def _is_numeric(column: Any) -> bool:
    """Whether a column has a numeric type and no missing values."""
    kind = getattr(getattr(column, "dtype", None), "kind", "O")
    return kind in "iuf" and not (hasattr(column, "hasnans") and column.hasnans)


def _floats(column: Any) -> Array:
    return np.asarray(column, dtype=float)


def _number(cell: Any) -> float:
    """A cell as a number.

    Raises:
        TypeError, ValueError, OverflowError: it is not a number; true and false are not.
    """
    if isinstance(cell, bool | np.bool_):
        raise TypeError
    return float(cell)


def _numbers(column: Any, name: str, rows: Array, where: str, kind: Variable) -> Array:
    """The chosen rows of a column as floats, each of an allowed kind."""
    numeric = _is_numeric(column)
    out = _floats(column)[rows] if numeric else np.empty(rows.size)
    for i, cell in enumerate(() if numeric else np.asarray(column, dtype=object)[rows]):
        try:
            out[i] = _number(cell)
        except (TypeError, ValueError, OverflowError):
            raise UsageError(f"{where}, row {rows[i] + 1}, column '{name}': '{cell!s:.60}' is not a number") from None
    bad = ~kind.allows(out)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        cell = np.asarray(column, dtype=object)[rows[i]]
        raise UsageError(f"{where}, row {rows[i] + 1}, column '{name}': {cell} where {kind.allowed} is needed")
    return out


def _loose(column: Any, rows: Array) -> Array:
    """The chosen rows of an optional column as floats; NaN for cells that are not numbers."""
    if _is_numeric(column):
        return _floats(column)[rows]
    out = np.full(rows.size, np.nan)
    for i, cell in enumerate(np.asarray(column, dtype=object)[rows]):
        try:
            out[i] = _number(cell)
        except (TypeError, ValueError):
            continue
    return out


def _standard_errors(
    law: Law, table: Any, columns: Mapping[str, str], present: Sequence[str], rows: Array
) -> Array | None:
    """[O, n] of the outputs' `..._se` columns; None unless every output has one with only positive numbers."""
    names = [f"{columns.get(o, o)}_se" for o in law.outputs]
    if not all(name in present for name in names):
        return None
    se = np.stack([_loose(table[name], rows) for name in names])
    return se if (np.isfinite(se) & (se > 0)).all() else None


def _steps_differ(table: Any, present: Sequence[str], rows: Array, code: Array) -> bool:
    """Whether the steps within each run are all different; False also if steps are not numbers."""
    if "step" not in present or not _is_numeric(table["step"]):
        return False
    steps = _floats(table["step"])[rows]
    step = np.searchsorted(np.unique(steps), steps)
    both = np.sort(code * (step.max(initial=0) + 1) + step)
    return bool((both[1:] != both[:-1]).all())


def _copies(table: Any, present: Sequence[str], rows: Array, got: Mapping[str, Array]) -> list[str]:
    """A warning if rows without a run are equal to an earlier row in every column of the table."""
    _, first, which = np.unique(np.stack(list(got.values())), axis=1, return_index=True, return_inverse=True)
    alike = np.flatnonzero(first[which.reshape(-1)] != np.arange(rows.size))
    cells = {name: np.asarray(table[name], dtype=object) for name in present} if alike.size else {}

    def same(i: int) -> bool:
        mine, other = rows[i], rows[first[which.reshape(-1)[i]]]
        return all(str(column[mine]) == str(column[other]) for column in cells.values())

    copies = [int(i) for i in alike if same(int(i))]
    if not copies:
        return []
    pair = f"{rows[first[which.reshape(-1)[copies[0]]]] + 1} and {rows[copies[0]] + 1}"
    return [
        f"{len(copies)} row{'s are' if len(copies) > 1 else ' is'} the same as an earlier one in every column (rows "
        f"{pair}): treating them as separate replicates; remove them if they are duplicates"
    ]


def _refuse_duplicates(
    table: Any, present: Sequence[str], rows: Array, labels: list[str], got: Mapping[str, Array], where: str
) -> None:
    """Refuse a run that has the same measurement twice: the same step, or without steps the same values."""
    if "step" in present:
        keys: list[tuple[Any, ...]] = list(zip(labels, [str(s) for s in np.asarray(table["step"])[rows]], strict=True))
        what = "run and step"
    else:
        cells = zip(*(v.tolist() for v in got.values()), strict=True)
        keys = list(zip(labels, cells, strict=True))
        what = "measurement"
    seen: dict[tuple[Any, ...], int] = {}
    for i, key in enumerate(keys):
        if key in seen:
            first = rows[seen[key]] + 1
            raise UsageError(f"{where}, rows {first} and {rows[i] + 1} are the same {what} ({key[0]})")
        seen[key] = i

"""Which rows of a table belong to one run, and which runs are resampled together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forgetting.analysis.fit.cells import Where, loose
from forgetting.analysis.laws.base import Array
from forgetting.analysis.named_runs import IDENTIFYING, combined, told_runs
from forgetting.analysis.selection import coded
from forgetting.display.numbers import several
from forgetting.errors import UsageError, did_you_mean

RUN = "run_id"
"""The column of runs unless another is given."""


@dataclass(frozen=True)
class Runs:
    """The runs of a table, or the groups of runs that are resampled together.

    Attributes:
        names: of the runs or groups; empty if the table does not identify runs.
        code: [n] the run or group of each row.
        warnings: sentences on how the runs were found and on rows that occur twice.
        inner: [n] the run of each row, if groups were asked for; else None.
    """

    names: tuple[str, ...]
    code: Array
    warnings: tuple[str, ...] = ()
    inner: Array | None = None


def columns_of_runs(run: str | Sequence[str], present: Sequence[str], where: str) -> tuple[str, ...]:
    """The columns that identify runs, without duplicates.

    Raises:
        UsageError: none was given, or the table lacks one; only `run_id` on its own may be missing.
    """
    names = (run,) if isinstance(run, str) else tuple(dict.fromkeys(run))
    if not names:
        raise UsageError("run: give at least one column")
    for name in names:
        if name not in present and names != (RUN,):
            parts = [part.strip() for part in name.split(",")]
            known = did_you_mean(name, present)
            if len(parts) > 1 and all(part in present for part in parts):
                known = f"for several columns, give {' '.join(f'--run {part}' for part in parts)} (run={parts})"
            raise UsageError(f"{where} has no column '{name}' that says which rows belong to one run; {known}")
    return names


def find_runs(
    table: Any, by: tuple[str, ...], present: list[str], rows: Array, got: Mapping[str, Array], where: Where
) -> Runs:
    """The runs by the columns `by`; without a column of runs, by the columns that describe runs, if possible.

    If rows that agree in `by` belong to several runs (by `run_id`, or else by the columns that describe runs), these
    runs form one group.

    Args:
        table: columns by name.
        by: from `columns_of_runs`.
        present: names of the table's columns.
        rows: [n] numbers of the rows to consider, from 0.
        got: [n] values of the law's variables and outputs.
        where: the table, for messages.

    Raises:
        UsageError: a blank in a column, or a run that has the same measurement twice.
    """
    if by == (RUN,) and RUN not in present:
        return _told(table, present, rows, got, where)
    for name in by:
        _refuse_blank(*coded(table[name]), name, rows, where)
    code, names = combined(table, by, rows)
    names = tuple(name.removeprefix(f"{by[0]}=") for name in names) if len(by) == 1 else names
    steps = _steps(table, present, rows, got, where)
    if steps is not None and _steps_differ(steps, code):
        return Runs(names, code)
    copies = _copies_in(table, steps, rows, code, got)
    if copies is None:
        return Runs(names, code)
    finer = tuple(name for name in ([RUN] if RUN in present else IDENTIFYING) if name in present)
    inner = combined(table, tuple(dict.fromkeys([*by, *finer])), rows)[0]
    if by == (RUN,) or _copies_in(table, steps, rows, inner, got) is not None:
        raise UsageError(_repeated(table, present, rows, names[code[copies[0]]], copies, by, got, where))
    return Runs(names, code, inner=inner)


def _repeated(
    table: Any,
    present: Sequence[str],
    rows: Array,
    name: str,
    copies: tuple[int, int],
    by: tuple[str, ...],
    got: Mapping[str, Array],
    where: Where,
) -> str:
    """The message for two rows of one run with the same measurement."""
    first, second = (rows[i] for i in copies)
    what = "run and step" if "step" in present or "step" in got else "measurement"
    said = f"{where}, rows {where.row(first)} and {where.row(second)} are the same {what} ({name})"
    other = [
        column
        for column in present
        if column not in (*by, *got, "step")
        and not column.endswith("_se")
        and str(np.asarray(table[column], dtype=object)[first]) != str(np.asarray(table[column], dtype=object)[second])
    ]
    if by == (RUN,) or not other:
        return said
    flags = " ".join(f"--run {column}" for column in (*by, other[0]))
    return (
        f"{said}; they differ in {', '.join(other)}: give every column that distinguishes runs ({flags}, "
        f"run={[*by, other[0]]}), or name the runs in a column '{RUN}'"
    )


def _told(table: Any, present: list[str], rows: Array, got: Mapping[str, Array], where: Where) -> Runs:
    """The runs of a table without `run_id`, identified by other columns if steps increase within each."""
    copies = _copies(table, present, rows, got, where)
    hint = ["if column 'run' says which rows belong to one run, give --run run (run='run')"] if "run" in present else []
    unknown = Runs((), rows, (*copies, *hint))
    steps = _steps(table, present, rows, got, where)
    if steps is None:
        return unknown
    told = told_runs(table, present, rows, steps)
    if told.clash is not None or not 1 < len(told.names) < rows.size:
        return unknown
    said = f"the table has no column 'run_id': treating rows with the same {', '.join(told.columns)} as one run"
    count = several(len(told.names), "run")
    return Runs(told.names, told.code, (f"{said} ({count}); choose other columns of runs with --run COLUMN",))


def _refuse_blank(texts: list[str], code: Array, name: str, rows: Array, where: Where) -> None:
    """Refuse rows without a name of their run, because together they would look like one run."""
    # recognise pandas' missing value by its name, because comparing with it does not give a bool
    empty = np.array([text.strip() in ("", "nan", "None", "<NA>") for text in texts], dtype=bool)
    blank = rows[empty[code[rows]]]
    if blank.size:
        raise UsageError(
            f"{where}, row {where.row(blank[0])}, column '{name}': blank"
            + (f", as in {several(len(blank) - 1, 'other row')}" if len(blank) > 1 else "")
            + "; name the run of every row, or leave the column out if every row is its own run"
        )


def _steps(table: Any, present: Sequence[str], rows: Array, got: Mapping[str, Array], where: Where) -> Array | None:
    """[n] steps: those of the law, which may be from another column, or else the column `step`; None without either.

    NaN for a step that is not a number.
    """
    if "step" in got:
        return got["step"]
    return loose(table["step"], "step", rows, where) if "step" in present else None


def _steps_differ(steps: Array, code: Array) -> bool:
    """Whether the [n] steps within each run are all different; steps that are not numbers count as equal."""
    step = np.unique(steps, return_inverse=True)[1]
    both = np.sort(code * (step.max(initial=0) + 1) + step)
    return bool((both[1:] != both[:-1]).all())


def _copies(table: Any, present: Sequence[str], rows: Array, got: Mapping[str, Array], where: Where) -> list[str]:
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
    pair = f"{where.row(rows[first[which.reshape(-1)[copies[0]]]])} and {where.row(rows[copies[0]])}"
    return [
        f"{len(copies)} row{'s are' if len(copies) > 1 else ' is'} the same as an earlier one in every column (rows "
        f"{pair}): treating them as separate replicates; remove them if they are duplicates"
    ]


def _copies_in(
    table: Any, steps: Array | None, rows: Array, code: Array, got: Mapping[str, Array]
) -> tuple[int, int] | None:
    """The first two of the [n] rows that are the same measurement of a run; None if there are none.

    These have the same step, or in a table without steps the same values.

    Args:
        table: columns by name.
        steps: [n] from `_steps`; those that are not numbers are compared as texts.
        rows: [n] numbers of the rows.
        code: [n] the run of each.
        got: [n] values of the law's variables and outputs.
    """
    cells: list[Any]
    if steps is None:
        cells = list(zip(*(values.tolist() for values in got.values()), strict=True))
    else:
        cells, unread = steps.tolist(), np.flatnonzero(np.isnan(steps)).tolist()
        texts = np.asarray(table["step"], dtype=object) if unread else rows
        for at in unread:
            cells[at] = str(texts[rows[at]])
    seen: dict[Any, int] = {}
    for i, key in enumerate(zip(code.tolist(), cells, strict=True)):
        if key in seen:
            return seen[key], i
        seen[key] = i
    return None

"""Identifies the runs of a table without run names, for a comparison: by label, mitigation, rank, seed, ..."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from forgetting.analysis.laws.base import Array
from forgetting.analysis.named_runs import told_runs
from forgetting.analysis.selection import DONE, is_blank, row_numbers, status_of, with_column
from forgetting.analysis.table_files import Table
from forgetting.analysis.tables import rows
from forgetting.display.numbers import several
from forgetting.errors import UsageError


def labels_of_rows(table: Table) -> list[str]:
    """The label of each row, or its method if the label is blank; empty if both are."""
    label, method = (table.get(name) or [""] * rows(table) for name in ("label", "method"))
    return [
        str(one) if not is_blank(one) else "" if is_blank(other) else str(other)
        for one, other in zip(label, method, strict=True)
    ]


def with_runs(table: Table, name: str) -> tuple[Table, list[str]]:
    """Add a column `run_id` if the table has none, and return notes that say how rows were assigned to runs.

    Rows belong to one run if they agree in every column that describes a run, and their steps increase. Without steps,
    or without a label or method, every row is a run.

    Args:
        table: columns by name, one entry per measurement.
        name: the data set.

    Raises:
        UsageError: steps are missing or do not increase, so that rows may belong to several runs.
    """
    if any(str(cell).strip() not in ("", "nan", "None", "<NA>") for cell in table.get("run_id", ())):
        return table, []
    number = row_numbers(table)
    every = [f"row {i + 1}" for i in number]
    alone = "the table has no column 'run_id': treating every row as a run"
    step = _numbers(table, "step")
    if not {"label", "method"} & set(table) or np.isnan(step).all():
        return with_column(table, "run_id", every), [alone]
    counted = np.array([_trained(table, i) for i in range(rows(table))], dtype=bool) & ~(step <= 0)
    at = np.flatnonzero(counted)
    told = told_runs(table, list(table), at, step[at])
    if told.clash is not None:
        first, second = told.clash
        run = told.names[told.code[np.flatnonzero(at == second)[0]]]
        steps = f"steps {step[first]:g} and {step[second]:g}"
        raise UsageError(
            f"'{name}' has no column 'run_id', and rows {number[first] + 1} and {number[second] + 1}, {steps}, cannot "
            f"be told apart as runs ({run}); name the run of every row in a column 'run_id'"
        )
    whole = told_runs(table, list(table), np.arange(rows(table)), step)
    ids = [whole.names[code] for code in whole.code]
    said = f"treating rows with the same {', '.join(whole.columns)} as one run"
    note = f"the table has no column 'run_id': {said} ({several(len(told.names), 'run')})"
    return with_column(table, "run_id", ids), [note]


def _trained(table: Table, i: int) -> bool:
    """Whether a row was measured during the training of a finished run, not on interpolated weights."""
    done = "status" not in table or status_of(table["status"][i]) == DONE
    alpha = number_in(table["alpha"][i]) if "alpha" in table else math.nan
    return done and not alpha < 1


def _numbers(table: Table, column: str) -> Array:
    return np.array([number_in(cell) for cell in table.get(column, [math.nan] * rows(table))])


def number_in(cell: Any) -> float:
    """A cell as a number; NaN if it is not one."""
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan

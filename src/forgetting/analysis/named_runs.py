"""Identifies the runs of a table without run names, by the columns that describe them: label, rank, seed, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forgetting.analysis.laws.base import Array
from forgetting.analysis.selection import coded

IDENTIFYING = (
    "dataset",
    "model",
    "label",
    "method",
    "mitigation",
    "variant",
    "rank",
    "trainable_params",
    "learning_rate",
    "lr",
    "batch_size",
    "seed",
    "run",
    "run_name",
    "run_number",
    "trial",
    "replicate",
)
"""Columns that describe a run and are constant within it."""


@dataclass(frozen=True)
class ToldRuns:
    """Runs identified by the columns that describe them.

    Attributes:
        columns: the identifying columns that the table has.
        names: [R] names of the runs, such as `label=lora, rank=16, seed=0`.
        code: [n] index in `names` of each row's run.
        clash: two consecutive rows of one run, counted from 0, whose steps do not increase; None if all steps do.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    code: Array
    clash: tuple[int, int] | None


def told_runs(table: Any, present: Sequence[str], rows: Array, steps: Array) -> ToldRuns:
    """Group the rows of a table into runs, by all its identifying columns.

    Args:
        table: columns by name.
        present: names of its columns.
        rows: [n] row numbers to consider.
        steps: [n] their steps; NaN counts as not increasing.
    """
    columns = tuple(name for name in IDENTIFYING if name in present)
    code, names = combined(table, columns, rows)
    order = np.argsort(code, kind="stable")
    before, after = order[:-1], order[1:]
    bad = np.flatnonzero((code[before] == code[after]) & ~(steps[after] > steps[before]))
    earliest = bad[np.argmin(after[bad])] if bad.size else 0
    clash = (int(rows[before[earliest]]), int(rows[after[earliest]])) if bad.size else None
    return ToldRuns(columns, names, code, clash)


def combined(table: Any, columns: Sequence[str], rows: Array) -> tuple[Array, tuple[str, ...]]:
    """Group rows that agree in all the given columns: [n] group of each row, and [R] names of the groups.

    Names are like `rank=16, seed=0`, without columns that are equal in all rows.

    Args:
        table: columns by name.
        columns: names of the columns to combine.
        rows: [n] row numbers to consider.
    """
    code = np.zeros(rows.size, dtype=np.int64)
    texts: dict[str, list[str]] = {}
    own: dict[str, Array] = {}
    for name in columns:
        texts[name], every = coded(table[name])
        own[name] = every[rows]
        _, code = np.unique(code * len(texts[name]) + own[name], return_inverse=True)
    first = np.unique(code, return_index=True)[1]
    shown = [name for name in columns if np.unique(own[name]).size > 1] or list(columns[:1])
    return code, tuple(", ".join(f"{name}={texts[name][own[name][i]]}" for name in shown) for i in first)

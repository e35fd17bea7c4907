"""Sums of products of columns over the rows of each run: all that inference by whole runs needs of many rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from forgetting.analysis.fit.data import Data
from forgetting.analysis.laws.base import Array

FEW = 2_000
"""Rows up to which sums are taken without a sparse matrix."""
DETERMINED = 1e-3
"""Where less than this of a direction is left without a run, the run alone determines it."""


def grams(columns: Array, run: Array, runs: int) -> Array:
    """[R, k, k] sums over each run's rows of the products of [m, k] columns."""
    each = np.ascontiguousarray(columns.T)
    out = np.empty((runs, len(each), len(each)))
    for i, one in enumerate(each):
        for j, other in enumerate(each[: i + 1]):
            out[:, i, j] = out[:, j, i] = np.bincount(run, one * other, runs)
    return out


def every_kth_run(data: Data, weights: Array, most: int) -> tuple[Data, Array]:
    """Whole runs, evenly spaced, of about so many rows at most; and their weights [O, n]."""
    if data.n <= most:
        return data, weights
    rows = data.run % -(-data.n // most) == 0
    return replace(data.take(rows), warnings=()), weights[:, rows]


def sums(columns: Array, weights: Array, cell: Array, run: Array, runs: int) -> Array:
    """[R, k] sums over each run's rows of weights [n] times [c, k] columns, each row having its cell's."""
    if cell.size <= FEW:
        out = np.zeros((runs, columns.shape[1]))
        for k, column in enumerate(columns.T):
            out[:, k] = np.bincount(run, weights * column[cell], runs)
        return out
    from scipy import sparse  # takes longer to import than a small fit

    held = sparse.csr_array((weights, (run, cell)), shape=(runs, len(columns)))
    return np.asarray(held @ columns)

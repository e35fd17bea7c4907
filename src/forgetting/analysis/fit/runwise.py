"""Sums of products of columns over the rows of each run: all that inference by whole runs needs of many rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from forgetting.analysis.fit.data import Data
from forgetting.analysis.laws.base import Array

DETERMINED = 1e-3
"""Where less than this of a direction is left without a run, the run alone determines it."""


def grams(columns: Array, run: Array, runs: int) -> Array:
    """[R, k, k] sums over each run's rows of the products of [m, k] columns."""
    k = columns.shape[1]
    out = np.empty((runs, k, k))
    for i in range(k):
        for j in range(i, k):
            out[:, i, j] = out[:, j, i] = np.bincount(run, columns[:, i] * columns[:, j], runs)
    return out


def every_kth_run(data: Data, weights: Array, most: int) -> tuple[Data, Array]:
    """Whole runs, evenly spaced, of about so many rows at most; and their weights [O, n]."""
    if data.n <= most:
        return data, weights
    rows = data.run % -(-data.n // most) == 0
    return replace(data.take(rows), warnings=()), weights[:, rows]

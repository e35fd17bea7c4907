"""Sums of products of columns over each run's rows, which are all that inference by whole runs needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from forgetting.analysis.fit.data import Data
from forgetting.analysis.laws.base import Array

FEW = 2_000
"""For more rows than this, sums use a sparse matrix."""
LEAST_RUNS = 50
"""A sample of rows keeps at least this many runs, if there are as many."""
DETERMINED = 1e-3
"""If less than this share of a direction remains without a run, the run alone determines it."""


def grams(columns: Array, run: Array, runs: int) -> Array:
    """[R, k, k] products of the [m, k] columns, summed over each run's rows."""
    each = np.ascontiguousarray(columns.T)
    out = np.empty((runs, len(each), len(each)))
    for i, one in enumerate(each):
        for j, other in enumerate(each[: i + 1]):
            out[:, i, j] = out[:, j, i] = np.bincount(run, one * other, runs)
    return out


def pull_of_runs(gram: Array, score: Array) -> tuple[Array, bool]:
    """[R, k] (I - P'P)^-1 P'r for each run, and whether the fit without a run determines every direction.

    Here P is a run's rows of an orthonormal basis and r its residuals. The result is the effect of the run on the
    coefficients of the fit.

    Args:
        gram: [R, k, k] P'P of each run.
        score: [R, k] P'r of each run.
    """
    eigen, vectors = np.linalg.eigh(gram)
    # a direction that one run alone determines has an eigenvalue of 1, and the run's residual there is 0
    grow = np.where(eigen < 1 - DETERMINED, 1 / np.maximum(1 - eigen, DETERMINED), 0.0)
    turned = grow * np.einsum("gki,gk->gi", vectors, score)
    return np.einsum("gki,gi->gk", vectors, turned), bool(np.all(eigen < 1 - DETERMINED))


def sole_run(gram: Array) -> int | None:
    """The first run that alone determines some direction, given products [R, k, k] of orthonormal columns by run."""
    alone = np.linalg.eigvalsh(gram).max(axis=1, initial=0.0) >= 1 - DETERMINED
    return int(np.argmax(alone)) if alone.any() else None


def determined_by_one(gram: Array) -> bool:
    """Whether one run alone determines the last of the orthonormal columns, given their products [R, k, k] by run.

    That run's residuals have no share in the column, so no other run can tell the coefficient's error.
    """
    eigen, vectors = np.linalg.eigh(gram)
    share = np.sum(np.where(eigen < 1 - DETERMINED, 0.0, vectors[:, -1] ** 2), axis=1)
    return bool(np.any(share > DETERMINED))


def evenly_spaced(data: Data, weights: Array, most: int) -> tuple[Data, Array]:
    """A sample of about `most` rows, and their weights [O, n]; all rows if there are no more.

    Takes evenly spaced whole runs. If these would be fewer than LEAST_RUNS, it takes evenly spaced rows of about
    LEAST_RUNS runs, because inference by runs depends on their number.
    """
    if data.n <= most:
        return data, weights
    every = -(-data.n // most)
    apart = min(every, max(1, len(data.runs) // LEAST_RUNS))
    rows = data.run % apart == 0
    if apart < every:
        rows = thinned(data.run, np.arange(0, len(data.runs), apart), most / int(rows.sum()))
    return replace(data.take(rows), warnings=()), weights[:, rows]


def thinned(run: Array, kept: Array, share: float) -> Array:
    """[n] mask of evenly spaced rows of each kept run: about this share of them, and at least the first."""
    out = np.zeros(run.size, dtype=bool)
    order = np.argsort(run, kind="stable")
    ends = np.cumsum(np.bincount(run))
    for one in kept:
        rows = order[ends[one - 1] if one else 0 : ends[one]]
        out[rows[np.linspace(0, rows.size - 1, max(1, int(rows.size * share))).round().astype(int)]] = True
    return out


def sums(columns: Array, weights: Array, cell: Array, run: Array, runs: int) -> Array:
    """[R, k] sums over each run's rows of weights [n] times columns [c, k]; `cell` [n] is each row's index in them."""
    if cell.size <= FEW:
        out = np.zeros((runs, columns.shape[1]))
        for k, column in enumerate(columns.T):
            out[:, k] = np.bincount(run, weights * column[cell], runs)
        return out
    from scipy import sparse  # takes longer to import than a small fit

    held = sparse.csr_array((weights, (run, cell)), shape=(runs, len(columns)))
    return np.asarray(held @ columns)

"""Least squares on many rows from sums over cells of rows, with the same results as from the rows.

Rows with equal variables form a cell. For any law f, the sum of w (y - f)^2 over the rows of a cell is W (mean - f)^2
plus a constant, where W is the cell's total weight and `mean` its weighted mean. The cells therefore have the same
minimum as the rows. A resample multiplies each run's residuals by one number, so a cell's resampled mean is its fitted
value plus a weighted sum of these numbers, and the refits are those of the rows as well. A law that is linear in all
its parameters needs no cells, because its refits follow from one sum per run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from forgetting.analysis.fit.bootstrap import (
    MIN_RUNS,
    Draws,
    between,
    blocks_of_runs,
    free_basis,
    signs,
    without_own_run,
)
from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.options import Options
from forgetting.analysis.fit.orthogonal import RANK, lengths
from forgetting.analysis.fit.runwise import LEAST_RUNS, grams, sole_run, sums, thinned
from forgetting.analysis.fit.search import Found, search
from forgetting.analysis.fit.shape import FLAT, Shape, shape
from forgetting.analysis.fit.solver import Problem, minimise
from forgetting.analysis.fit.validate import FOLDS, between_and_within, root_mean_square, scatter
from forgetting.analysis.laws.base import Adapted, Array

LARGE = 2_000
"""Tables with more rows are fitted from sums; smaller ones row by row."""
MOST_CELLS = 2_000
"""With more cells than this, a law that is not linear is fitted row by row."""
AFFORDED = 60_000
"""Most derivatives (rows times outputs times parameters) of a row-by-row fit; above it, whole runs are sampled."""
SECONDS = 3e-4
"""Seconds per derivative, measured for a fit with 64 starts and 200 resamples on one core."""


@dataclass(frozen=True)
class Cells:
    """A table summed into cells.

    Attributes:
        data: the rows.
        weights: [O, n] weights of the rows.
        problem: the law with one row per cell.
        cell: [n] cell index of each row.
        y: [O, c] weighted means.
        mass: [O, c] total weights.
        linear: whether the law is linear in all parameters; then every row is a cell.
    """

    data: Data
    weights: Array
    problem: Problem
    cell: Array
    y: Array
    mass: Array
    linear: bool

    def without(self, fold: Array, folds: int, values: Array) -> Array:
        """[folds, O * c] sums of [O, n] values over each cell's rows outside each fold."""
        size = self.mass.shape[1]
        own = np.stack([np.bincount(fold * size + self.cell, v, folds * size).reshape(folds, size) for v in values], 1)
        # add up the other folds; subtracting from the total would not give exactly 0 for empty cells
        others = 1.0 - np.eye(folds)
        return others @ own.reshape(folds, -1)

    def rows(self, values: Array) -> Array:
        """[O, n] values of the rows' cells, given [O * c] values."""
        return values.reshape(self.y.shape)[:, self.cell]


def applies(data: Data, options: Options) -> bool:
    """Whether a fit can use sums: many rows, least squares, intervals from the bootstrap."""
    return data.n > LARGE and options.objective.quadratic and options.intervals == "bootstrap"


def is_linear(problem: Problem) -> bool:
    """Whether a law is linear in all parameters, without bounds or held values."""
    return bool(problem.linear.all() and not problem.fixed.any()) and all(
        np.isinf([p.low, p.high]).all() for p in problem.law.parameters
    )


def most_rows(problem: Problem) -> int:
    """Most rows that a law is fitted to row by row."""
    return AFFORDED // (len(problem.law.parameters) * len(problem.law.outputs))


def sample_runs(data: Data, weights: Array, most: int) -> tuple[Data, Array]:
    """Evenly spaced runs with about `most` rows, with a warning that says so, and their weights.

    If LEAST_RUNS runs already have more rows, the rows within each are evenly spaced as well.
    """
    runs = len(data.runs)
    count = min(runs, max(LEAST_RUNS, int(runs * most / data.n)))
    kept = np.unique(np.linspace(0, runs - 1, count).round().astype(int))
    chosen = np.zeros(runs, dtype=bool)
    chosen[kept] = True
    rows = chosen[data.run]
    alone = data.unit == "row"
    units, spaced = f"{data.unit}s", "evenly spaced" if alone else "evenly spaced by name"
    of = f"{len(kept):,} of {runs:,} {units}, {spaced}"
    if count <= LEAST_RUNS and (found := int(rows.sum())) > most:
        rows = thinned(data.run, kept, most / found)
        which = f"{len(kept):,} of {runs:,} {units}, both evenly spaced"
        which = f"all {runs:,} {units}, evenly spaced" if count == runs else which
        of = f"{int(rows.sum()):,} of the {found:,} rows of {which}"
    takes = _duration(AFFORDED * SECONDS * data.n / most)
    said = f"fitted to {of}: with this law and objective all {data.n:,} rows would take about {takes}"
    part = replace(data.take(rows), warnings=(*data.warnings, said), sampled_from=(data.n, data.n_runs))
    return part, weights[:, rows]


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def collapse(problem: Problem, data: Data, weights: Array) -> Cells:
    """Sum rows into cells."""
    if is_linear(problem):
        return Cells(data, weights, problem, np.arange(data.n), data.y, weights, True)
    first, cell = data.cells
    small = Problem(problem.law, {k: v[first] for k, v in data.x.items()}, problem.objective, problem.held)
    size = len(first)
    mass = np.stack([np.bincount(cell, w, size) for w in weights])
    means = np.stack([np.bincount(cell, w * y, size) for w, y in zip(weights, data.y, strict=True)]) / mass
    return Cells(data, weights, small, cell, means, mass, False)


def find(cells: Cells, options: Options, rng: np.random.Generator) -> tuple[Found, Shape]:
    """The minimum, with the objective of all rows, and the objective's shape there."""
    first = None if options.start is None else np.array(options.start)
    y, mass = cells.y.reshape(-1), cells.mass.reshape(-1)
    if cells.linear:  # every start reaches the single minimum; drawing all starts keeps the resamples' random numbers
        found = search(cells.problem, y, mass, starts=min(options.starts, 3), rng=np.random.default_rng(0), first=first)
        cells.problem.law.starts(options.starts, rng)
    else:
        found = search(cells.problem, y, mass, starts=options.starts, rng=rng, first=first)
    looks = shape(cells.problem, found.theta, y, mass)
    fitted = cells.rows(cells.problem.values(found.theta[None])[0])
    cost = float(np.sum(cells.weights * (cells.data.y - fitted) ** 2))
    free = int(np.sum(~cells.problem.fixed)) - len(looks.at_bounds)
    spare = cells.data.y.size - free
    if not cells.linear and found.cost > 0 and spare > 0 and y.size > free:
        # use the variance of all rows around the law, not that of the cells' means
        widen = (cost / spare) / (found.cost / (y.size - free))
        looks = replace(
            looks, standard_errors=looks.standard_errors * np.sqrt(widen), covariance=looks.covariance * widen
        )
    return replace(found, cost=cost), looks


def resample(cells: Cells, theta: Array, count: int, rng: np.random.Generator) -> tuple[Draws, Array, Array]:
    """The wild cluster bootstrap of `bootstrap.resample`, with the same random numbers.

    Returns:
        The draws, without the outputs that each was fitted to; and what these follow from: the runs' factors [B, R] and
        the left-out residuals [O, n].
    """
    runs = len(cells.data.runs)
    fitted = cells.problem.values(theta[None])[0]
    residual = left_out_residuals(cells, theta, cells.data.y - cells.rows(fitted))
    factors = signs(runs, count, rng)
    if cells.linear:
        columns, back = _orthonormal(cells, theta)
        root = np.sqrt(cells.weights.reshape(-1))
        run = np.tile(cells.data.run, len(residual))
        pull = np.stack([np.bincount(run, c, runs) for c in columns.T * (root * residual.reshape(-1))])
        ends = theta + factors @ (back @ pull).T
        return Draws(ends, np.empty(0), np.empty(0), 0, "residuals"), factors, residual
    from scipy import sparse  # takes longer to import than a small fit

    size = cells.mass.shape[1]
    moves = [
        sparse.csr_array((part, (cells.data.run, cells.cell)), shape=(runs, size)) for part in cells.weights * residual
    ]
    drawn = fitted + np.concatenate([(move.T @ factors.T).T for move in moves], axis=1) / cells.mass.reshape(-1)
    start = np.repeat(theta[None], count, axis=0)
    mass = cells.mass.reshape(1, -1)
    solution = minimise(cells.problem, start, drawn, mass, max_iterations=60, tolerance=1e-6)
    good = np.isfinite(solution.cost) & np.isfinite(solution.theta).all(axis=1)
    draws = Draws(solution.theta[good], np.empty(0), np.empty(0), int(np.sum(~good)), "residuals")
    return draws, factors[good], residual


def _orthonormal(cells: Cells, theta: Array) -> tuple[Array, Array]:
    """[m, k] orthonormal columns of a linear law's weighted derivatives, and the [K, k] matrix to its parameters."""
    basis = cells.problem.gradient(theta[None])[0] * np.sqrt(cells.weights.reshape(-1))[:, None]
    size = lengths(basis)
    columns, singular, turn = np.linalg.svd(basis / size, full_matrices=False)
    kept = singular > RANK * singular[0]
    return columns[:, kept], turn[kept].T / singular[kept] / size[:, None]


def left_out_residuals(cells: Cells, theta: Array, residual: Array) -> Array:
    """[O, n] residuals of each run in a fit without it; see `bootstrap.left_out_residuals`."""
    basis = free_basis(cells.problem, theta, cells.mass.reshape(-1))
    outputs, size = cells.mass.shape
    split = basis.reshape(outputs, size, -1)
    out = np.empty_like(residual)
    for at in blocks_of_runs(cells.data.run):
        cell, root = cells.cell[at], np.sqrt(cells.weights[:, at])
        part = split[:, cell] * (root / np.sqrt(cells.mass[:, cell]))[:, :, None]
        weighted = (residual[:, at] * root).reshape(-1)
        left = without_own_run(part.reshape(-1, split.shape[2]), weighted, np.tile(cells.data.run[at], outputs))
        out[:, at] = left.reshape(outputs, -1) / np.where(root > 0, root, 1.0)
    return out


def sole_unit(cells: Cells, theta: Array) -> int | None:
    """`bootstrap.sole_unit`, from cells."""
    basis = free_basis(cells.problem, theta, cells.mass.reshape(-1), FLAT)
    run, runs, outputs = cells.data.run, len(cells.data.runs), len(cells.mass)
    if cells.linear:
        return sole_run(grams(basis, np.tile(run, outputs), runs))
    size = basis.shape[1]
    products = (basis[:, :, None] * basis[:, None, :]).reshape(outputs, -1, size * size) / cells.mass[:, :, None]
    every = sum(sums(own, w, cells.cell, run, runs) for own, w in zip(products, cells.weights, strict=True))
    return sole_run(np.asarray(every).reshape(runs, size, size))


def freedom(cells: Cells, theta: Array) -> float:
    """`bootstrap.freedom`, from cells."""
    basis = free_basis(cells.problem, theta, cells.mass.reshape(-1)).reshape(*cells.mass.shape, -1)
    run, runs = cells.data.run, len(cells.data.runs)
    pulled = [
        sums(b / np.sqrt(m)[:, None], w, cells.cell, run, runs)
        for b, w, m in zip(basis, cells.weights, cells.mass, strict=True)
    ]
    return between(pulled, cells.weights, run)


def scatter_of(cells: Cells, theta: Array, left_out: Array | None = None) -> dict[str, float] | None:
    """`validate.scatter` of the rows; `left_out` are the residuals from `resample`, if known."""
    if len(cells.data.runs) < MIN_RUNS:
        return None
    residual = cells.data.y - cells.rows(cells.problem.values(theta[None])[0])
    left_out = left_out_residuals(cells, theta, residual) if left_out is None else left_out
    return scatter(residual, left_out, cells.problem.law.outputs)


def public_draws(cells: Cells, adapted: Adapted, theta: Array, factors: Array, residual: Array, best: Array) -> Array:
    """[B, K] draws as reported parameters, computed one by one because each may need the outputs it was fitted to."""
    if not adapted.of_outputs:
        nothing = np.empty((1, 0))
        return np.concatenate([adapted.public(one[None], nothing, nothing) for one in theta])
    fitted = cells.rows(cells.problem.values(best[None])[0])
    ones = np.ones((1, cells.data.n))
    # reuse the arrays, because allocating them costs more than the sums
    out, drawn, factor = [], np.empty_like(residual), np.empty(cells.data.n)
    for one, of_run in zip(theta, factors, strict=True):
        np.take(of_run, cells.data.run, out=factor, mode="clip")
        np.multiply(residual, factor, out=drawn)
        drawn += fitted
        out.append(adapted.public(one[None], drawn[None], ones))
    return np.concatenate(out)


def leave_one_run_out(cells: Cells, theta: Array) -> dict[str, Any] | None:
    """`validate.leave_one_run_out`, from cells."""
    data, runs = cells.data, len(cells.data.runs)
    if runs < 3:
        return None
    folds = min(runs, FOLDS)
    fold = data.run % folds
    if cells.linear:
        error = _linear_left_out(_orthonormal(cells, theta)[0], cells, fold, folds)
    else:
        mass, y = (cells.without(fold, folds, values) for values in (cells.weights, cells.weights * data.y))
        y = y / np.where(mass > 0, mass, 1.0)
        start = np.repeat(theta[None], folds, axis=0)
        solution = minimise(cells.problem, start, y, mass, max_iterations=60, tolerance=1e-6)
        with np.errstate(all="ignore"):
            predicted = cells.problem.values(solution.theta).reshape(folds, *cells.y.shape)
        error = data.y - predicted[fold, :, cells.cell].T
    return {"rmse": root_mean_square(error, cells.problem.law.outputs), "folds": folds}


def _linear_left_out(columns: Array, cells: Cells, fold: Array, folds: int) -> Array:
    """[O, n] errors of a linear law on left-out runs, from one small linear system per fold."""
    outputs = cells.y.shape[0]
    which, root = np.tile(fold, outputs), np.sqrt(cells.weights.reshape(-1))
    offset = cells.problem.values(np.zeros((1, len(cells.problem.law.parameters))))[0]
    y = (cells.data.y.reshape(-1) - offset) * root
    grams, rights = [], []
    for k in range(folds):
        part = columns[which == k]
        grams.append(part.T @ part)
        rights.append(part.T @ y[which == k])
    found = np.linalg.solve(sum(grams) - np.stack(grams), (sum(rights) - np.stack(rights))[:, :, None])[:, :, 0]
    error: Array = ((y - np.einsum("mk,mk->m", columns, found[which])) / root).reshape(cells.y.shape)
    return error


def run_noise(cells: Cells, theta: Array, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """`validate.run_noise`, from cells."""
    residual = cells.data.y - cells.rows(cells.problem.values(theta[None])[0])
    return between_and_within(residual, cells.data.run, names)

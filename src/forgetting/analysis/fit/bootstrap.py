"""Uncertainty by resampling whole runs.

The steps of one run are one trajectory: their errors move together, and resampling points one by one gives intervals
that are several times too narrow. Two schemes resample whole runs:

residuals (least squares): each run keeps its place in the design and its whole residual curve is multiplied by one
    random number (the wild cluster bootstrap: Cameron, Gelbach & Miller 2008, doi:10.1162/rest.90.3.414; six-point
    weights for few runs: Webb 2023, doi:10.1111/caje.12661). Residuals are first divided by I - H of their run: what
    they would have been had the run been left out (CR3: MacKinnon, Nielsen & Webb 2023, doi:10.1002/jae.2949).
    No resample ever loses a rank, so it works from about five runs on.
cases (Huber): runs are drawn with replacement.
normal (least squares of one output whose rows are independent, `iid`): errors of one size, up to the weights, are drawn
    from the normal distribution with the residual variance SSE / (n - p). Of a law that is linear in its parameters
    that is Student's interval of the textbook, which is right for as few rows as one more than parameters.

Either way the percentiles are widened from the normal's quantile to Student's, its degrees of freedom the runs less
what the law takes up between them (`freedom`): 1 of runs that are alike but for an offset, 2 along a line, and for rows
that are runs of their own the number of parameters.
`points`, the naive scheme, is here to be compared with; no fit uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from forgetting.analysis.fit.orthogonal import orthogonal
from forgetting.analysis.fit.runwise import grams, pull_of_runs, sums
from forgetting.analysis.fit.solver import Problem, minimise
from forgetting.analysis.laws.base import Array

MIN_RUNS = 5
LOST = 0.2
"""Share of draws that may be lost at a point before its band is."""
BLOCK = 2**16
"""Rows of whole runs that are worked on at once."""
WEBB = np.array([-np.sqrt(1.5), -1.0, -np.sqrt(0.5), np.sqrt(0.5), 1.0, np.sqrt(1.5)])


@dataclass(frozen=True)
class Draws:
    """Refits of resampled data.

    Attributes:
        theta: [B, K] in fitted coordinates.
        y: [B, O, n] what each was fitted to.
        weights: [B, n] weight of each row in it.
        lost: resamples whose refit did not end at a finite objective.
        scheme: `residuals`, `cases`, `normal` or `points`.
    """

    theta: Array
    y: Array
    weights: Array
    lost: int
    scheme: str


def scheme_for(problem: Problem, *, iid: bool = False) -> str:
    """Which scheme suits the objective, and rows that are independent."""
    if iid and problem.objective.quadratic and len(problem.law.outputs) == 1:
        return "normal"
    return "residuals" if problem.objective.quadratic else "cases"


def resample(
    problem: Problem,
    theta: Array,
    y: Array,
    weights: Array,
    run: Array,
    *,
    count: int,
    rng: np.random.Generator,
    scheme: str,
    spare: int = 1,
) -> Draws:
    """Refit `count` resamples, each from the best fit.

    Args:
        problem: law in fitted coordinates, variables, objective.
        theta: [K] the best fit.
        y: [O, n] measured outputs.
        weights: [O, n].
        run: [n] index of the run of each row.
        count: B.
        rng: draws.
        scheme: see the module.
        spare: degrees of freedom of the residuals, for `normal`.
    """
    outputs, n = y.shape
    runs = int(run.max()) + 1
    rows = np.ones((count, n))
    if scheme == "residuals":
        fitted = problem.values(theta[None])[0]
        residual = left_out_residuals(problem, theta, y.reshape(-1), weights.reshape(-1), np.tile(run, outputs))
        curves = residual * np.tile(signs(runs, count, rng)[:, run], outputs)
        drawn = problem.objective.moved(fitted, curves)
        every = weights.reshape(1, -1)
    elif scheme == "normal":
        fitted, own = problem.values(theta[None])[0], weights.reshape(-1)
        cost = float(problem.objective.cost(problem.objective.residual(y.reshape(-1), fitted), own))
        size = np.sqrt(cost / spare / np.where(own > 0, own, np.inf))
        drawn = problem.objective.moved(fitted, size * rng.standard_normal((count, n)))
        every = own[None]
    else:
        unit = run if scheme == "cases" else np.arange(n)
        units = int(unit.max()) + 1
        rows = rng.multinomial(units, np.full(units, 1 / units), size=count)[:, unit].astype(float)
        drawn = np.broadcast_to(y.reshape(1, -1), (count, outputs * n))
        every = np.tile(rows, (1, outputs)) * weights.reshape(1, -1)
    solution = minimise(problem, np.repeat(theta[None], count, axis=0), drawn, every, max_iterations=60, tolerance=1e-6)
    good = np.isfinite(solution.cost) & np.isfinite(solution.theta).all(axis=1)
    kept = drawn.reshape(count, outputs, n)[good]
    return Draws(solution.theta[good], kept, rows[good], int(np.sum(~good)), scheme)


def signs(runs: int, count: int, rng: np.random.Generator) -> Array:
    """[count, runs] numbers of mean 0 and variance 1, by which whole residual curves are multiplied."""
    return rng.choice(WEBB if runs < 10 else np.array([-1.0, 1.0]), size=(count, runs))


def left_out_residuals(problem: Problem, theta: Array, y: Array, weights: Array, run: Array) -> Array:
    """[m] residuals, each run's as if the run had been left out of a fit linearised at theta.

    Args:
        problem: law in fitted coordinates, with an objective of squares, on whose scale the residuals are.
        theta: [K].
        y, weights, run: [m] outputs, weights and run index.
    """
    basis = free_basis(problem, theta, weights)
    root = np.sqrt(weights)
    residual = problem.objective.residual(y, problem.values(theta[None])[0]) * root
    out = np.empty_like(residual)
    for at in blocks_of_runs(run):
        out[at] = without_own_run(basis[at], residual[at], run[at])
    return np.asarray(out / np.where(root > 0, root, 1.0))


def blocks_of_runs(run: Array) -> Iterator[Array]:
    """Row numbers of whole runs, BLOCK rows or one run at a time; `run` is the [n] index of each row's run."""
    order = np.argsort(run, kind="stable")
    ends = np.cumsum(np.bincount(run))
    first = 0
    while first < ends.size:
        begin = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, begin + BLOCK, side="right")))
        yield order[begin : ends[last - 1]]
        first = last


def without_own_run(basis: Array, residual: Array, run: Array) -> Array:
    """[m] (I - P P')^-1 r of each run, P being its rows of the orthonormal basis.

    By the matrix inversion lemma that is r + P (I - P' P)^-1 P' r, so that nothing is larger than the rows times the
    columns of the basis.

    Args:
        basis: [m, k].
        residual: [m] weighted.
        run: [m] index of each row's run.
    """
    group = run - run.min()
    runs = int(group.max()) + 1
    pull = np.empty((runs, basis.shape[1]))
    for k, column in enumerate(basis.T):
        pull[:, k] = np.bincount(group, column * residual, runs)
    own, _ = pull_of_runs(grams(basis, group, runs), pull)
    return np.asarray(residual + np.einsum("mk,mk->m", basis, own[group]))


def free_basis(problem: Problem, theta: Array, weights: Array) -> Array:
    """[m, k] orthonormal columns of the weighted Jacobian in the directions that the fit could move."""
    log, free = problem.log_mask(False), problem.movable(theta)
    with np.errstate(all="ignore"):
        factor = np.asarray(problem.objective.jacobian_factor(problem.values(theta[None])[0])).reshape(-1, 1)
        jacobian = problem.gradient(theta[None])[0] * np.where(log, theta, 1.0) * np.sqrt(weights)[:, None] * factor
    jacobian = np.nan_to_num(jacobian[:, free])
    norm = np.linalg.norm(jacobian, axis=0)
    columns, _ = orthogonal(jacobian[:, norm > 0] / norm[norm > 0], problem.solvable[free][norm > 0])
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, singular > 1e-10 * singular[:1].max(initial=0.0)])


def freedom(problem: Problem, theta: Array, weights: Array, run: Array) -> float:
    """Degrees of freedom left between runs, at least 1: their number less the trace of the fit over their means.

    Args:
        problem: law in fitted coordinates.
        theta: [K] the best fit.
        weights: [O, n].
        run: [n] index of the run of each row.
    """
    basis = free_basis(problem, theta, weights.reshape(-1)).reshape(*weights.shape, -1)
    runs, own = int(run.max()) + 1, np.arange(run.size)
    pulled = [sums(b, np.sqrt(w), own, run, runs) for b, w in zip(basis, weights, strict=True)]
    return between(pulled, weights, run)


def between(pulled: Sequence[Array], weights: Array, run: Array) -> float:
    """`freedom` from [R, k] sums over runs, by output, of orthonormal columns times the roots of the weights [O, n]."""
    runs = len(pulled[0])
    taken = 0.0
    for own, weight in zip(pulled, weights, strict=True):
        mass = np.bincount(run, weight, runs)[:, None]
        taken += float(np.sum(own**2 / np.where(mass > 0, mass, np.inf)))
    return max(1.0, runs - taken / len(weights))


def widening(degrees: float, confidence: float) -> float:
    """Student's quantile over the normal's."""
    return student(confidence, degrees) / NormalDist().inv_cdf(0.5 + confidence / 2)


def student(confidence: float, freedom: float) -> float:
    """Half width, in standard errors, of Student's two-sided interval."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + confidence / 2))


def widen_by(scheme: str, runs: int, degrees: float, confidence: float) -> float:
    """Factor on the percentiles' distance from the estimate; drawing cases loses 1 / runs of the variance."""
    return widening(degrees, confidence) * (
        1.0 if scheme in ("residuals", "normal") else float(np.sqrt(runs / (runs - 1)))
    )


def interval(estimate: Array, draws: Array, confidence: float, widen: float) -> tuple[Array, Array]:
    """Percentiles of [B, ...] draws, their distance from the estimate widened; the estimate lies inside."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return estimate + widen * np.minimum(low - estimate, 0.0), estimate + widen * np.maximum(high - estimate, 0.0)


def symmetric_interval(estimate: float, draws: Array, confidence: float, widen: float) -> tuple[float, float]:
    """The estimate and the quantile of the draws' distances from it, widened, on both sides (Hall 1988).

    Percentiles of [B] draws may all lie on one side of an estimate, as they do where it sits near a bound; this
    interval holds the estimate, and its error is of higher order (J. R. Stat. Soc. B 50:35-45).
    """
    half = widen * float(np.quantile(np.abs(draws - estimate), confidence))
    return estimate - half, estimate + half


def finite_interval(
    estimate: Array, draws: Array, confidence: float, widen: float
) -> tuple[Array, Array, NDArray[np.int64]]:
    """`interval` of the draws that are finite, by [n] point, and how many are not; NaN where more than LOST are not."""
    lost = np.sum(~np.isfinite(draws), axis=0)
    low, high = np.full(estimate.shape, np.nan), np.full(estimate.shape, np.nan)
    whole = lost == 0
    low[whole], high[whole] = interval(estimate[whole], draws[:, whole], confidence, widen)
    for i in np.flatnonzero((lost > 0) & (lost <= LOST * len(draws))):
        kept = draws[np.isfinite(draws[:, i]), i]
        low[i], high[i] = interval(estimate[i], kept, confidence, widen)
    return low, high, lost

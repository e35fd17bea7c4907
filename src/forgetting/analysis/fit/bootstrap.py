"""Uncertainty by resampling whole runs.

The steps of a run are one trajectory with correlated errors, so resampling single points gives intervals that are
several times too narrow. The schemes are:

residuals (least squares): the runs stay as they are, and each run's whole residual curve is multiplied by one random
    number (the wild cluster bootstrap: Cameron, Gelbach & Miller 2008, doi:10.1162/rest.90.3.414; six-point weights
    for few runs: Webb 2023, doi:10.1111/caje.12661). The residuals are first multiplied by the inverse of their run's
    block of I - H, which gives those of a fit without the run (CR3: MacKinnon, Nielsen & Webb 2023,
    doi:10.1002/jae.2949). Every resample contains every rank, so about five runs are enough.
cases (Huber): runs are drawn with replacement.
normal (least squares of one output with independent rows, `iid`): errors with the residual variance SSE / (n - p),
    divided by the weights, are drawn from the normal distribution. For a law that is linear in its parameters this
    gives the textbook's Student interval, which only needs more rows than parameters.

In all cases the percentiles are widened from the normal quantile to Student's. Its degrees of freedom are the number of
runs minus those that the law uses between runs (`freedom`): 1 if runs differ only by an offset, 2 along a line, and the
number of parameters if every row is a run.
`points` resamples single rows. It is only for comparison; no fit uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from forgetting.analysis.fit.orthogonal import orthogonal
from forgetting.analysis.fit.runwise import grams, pull_of_runs, sole_run, sums
from forgetting.analysis.fit.shape import FLAT
from forgetting.analysis.fit.solver import Problem, minimise
from forgetting.analysis.laws.base import Array

MIN_RUNS = 5
"""Fewest runs that can be resampled."""
LOST = 0.2
"""If more than this share of the draws is not finite at a point, the point has no band."""
BLOCK = 2**16
"""Most rows that are processed at a time, in whole runs."""
WEBB = np.array([-np.sqrt(1.5), -1.0, -np.sqrt(0.5), np.sqrt(0.5), 1.0, np.sqrt(1.5)])


@dataclass(frozen=True)
class Draws:
    """Refits of resampled data.

    Attributes:
        theta: [B, K] parameters in fitted coordinates.
        y: [B, O, n] resampled outputs.
        weights: [B, n] how often each row occurs in each resample.
        lost: number of resamples whose refit did not reach a finite objective.
        scheme: `residuals`, `cases`, `normal` or `points`.
    """

    theta: Array
    y: Array
    weights: Array
    lost: int
    scheme: str


def scheme_for(problem: Problem, *, iid: bool = False) -> str:
    """The scheme for a problem's objective; `iid` means that rows are independent."""
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
    """Refit `count` resamples, each starting from the best fit.

    Args:
        problem: law in fitted coordinates, variables, objective.
        theta: [K] the best fit.
        y: [O, n] measured outputs.
        weights: [O, n] weights.
        run: [n] run index of each row.
        count: number of resamples, B.
        rng: random generator of the resamples.
        scheme: see the module's docstring.
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
    """[count, runs] random factors with mean 0 and variance 1 for the runs' residual curves."""
    return rng.choice(WEBB if runs < 10 else np.array([-1.0, 1.0]), size=(count, runs))


def left_out_residuals(problem: Problem, theta: Array, y: Array, weights: Array, run: Array) -> Array:
    """[m] residuals of each run in a fit without it, linearised at theta.

    Args:
        problem: law in fitted coordinates, with a least-squares objective; residuals are on its scale.
        theta: [K] the best fit.
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
    """Yield row numbers of whole runs, at most BLOCK rows or one run at a time, given the [n] run index of each row."""
    order = np.argsort(run, kind="stable")
    ends = np.cumsum(np.bincount(run))
    first = 0
    while first < ends.size:
        begin = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, begin + BLOCK, side="right")))
        yield order[begin : ends[last - 1]]
        first = last


def without_own_run(basis: Array, residual: Array, run: Array) -> Array:
    """[m] (I - P P')^-1 r for each run, where P is the run's rows of the orthonormal basis and r its residuals.

    Computed as r + P (I - P' P)^-1 P' r (the matrix inversion lemma), which needs no array larger than the basis.

    Args:
        basis: [m, k] orthonormal columns.
        residual: [m] weighted residuals.
        run: [m] run index of each row.
    """
    group = run - run.min()
    runs = int(group.max()) + 1
    pull = np.empty((runs, basis.shape[1]))
    for k, column in enumerate(basis.T):
        pull[:, k] = np.bincount(group, column * residual, runs)
    own, _ = pull_of_runs(grams(basis, group, runs), pull)
    return np.asarray(residual + np.einsum("mk,mk->m", basis, own[group]))


def sole_unit(problem: Problem, theta: Array, weights: Array, run: Array) -> int | None:
    """The index of a run that alone determines a direction of the parameters, so that no other shows its error there.

    None if there is none. Flat directions do not count.

    Args:
        problem: law in fitted coordinates.
        theta: [K] the best fit.
        weights: [O, n] weights.
        run: [n] run index of each row.
    """
    basis = free_basis(problem, theta, weights.reshape(-1), FLAT)
    return sole_run(grams(basis, np.tile(run, len(weights)), int(run.max()) + 1))


def free_basis(problem: Problem, theta: Array, weights: Array, least: float = 1e-10) -> Array:
    """[m, k] orthonormal basis of the weighted Jacobian's columns of free parameters, at theta [K]; weights are [m].

    It leaves out directions with a singular value below the share `least` of the largest.
    """
    log, free = problem.log_mask(False), problem.movable(theta)
    with np.errstate(all="ignore"):
        factor = np.asarray(problem.objective.jacobian_factor(problem.values(theta[None])[0])).reshape(-1, 1)
        jacobian = problem.gradient(theta[None])[0] * np.where(log, theta, 1.0) * np.sqrt(weights)[:, None] * factor
    jacobian = np.nan_to_num(jacobian[:, free])
    norm = np.linalg.norm(jacobian, axis=0)
    columns, _ = orthogonal(jacobian[:, norm > 0] / norm[norm > 0], problem.solvable[free][norm > 0])
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, singular > least * singular[:1].max(initial=0.0)])


def freedom(problem: Problem, theta: Array, weights: Array, run: Array) -> float:
    """Degrees of freedom between runs, at least 1: the number of runs minus the trace of the hat matrix of run means.

    With several outputs, the trace is the mean over outputs.

    Args:
        problem: law in fitted coordinates.
        theta: [K] the best fit.
        weights: [O, n] weights.
        run: [n] run index of each row.
    """
    basis = free_basis(problem, theta, weights.reshape(-1)).reshape(*weights.shape, -1)
    runs, own = int(run.max()) + 1, np.arange(run.size)
    pulled = [sums(b, np.sqrt(w), own, run, runs) for b, w in zip(basis, weights, strict=True)]
    return between(pulled, weights, run)


def between(pulled: Sequence[Array], weights: Array, run: Array) -> float:
    """`freedom` from sums over each run's rows.

    Args:
        pulled: [R, k] sums of the basis columns times the root of the weights, by output.
        weights: [O, n] weights.
        run: [n] run index of each row.
    """
    runs = len(pulled[0])
    taken = 0.0
    for own, weight in zip(pulled, weights, strict=True):
        mass = np.bincount(run, weight, runs)[:, None]
        taken += float(np.sum(own**2 / np.where(mass > 0, mass, np.inf)))
    return max(1.0, runs - taken / len(weights))


def widening(degrees: float, confidence: float) -> float:
    """Ratio of Student's quantile to the normal quantile."""
    return student(confidence, degrees) / NormalDist().inv_cdf(0.5 + confidence / 2)


def student(confidence: float, freedom: float) -> float:
    """Half width of Student's two-sided interval, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + confidence / 2))


def widen_by(scheme: str, runs: int, degrees: float, confidence: float) -> float:
    """Factor on the percentiles' distance from the estimate.

    For `cases` and `points`, it also corrects the variance, which is too small by the factor 1 - 1 / runs.
    """
    return widening(degrees, confidence) * (
        1.0 if scheme in ("residuals", "normal") else float(np.sqrt(runs / (runs - 1)))
    )


def interval(estimate: Array, draws: Array, confidence: float, widen: float) -> tuple[Array, Array]:
    """Percentiles of [B, ...] draws, their distance from the estimate widened; the interval contains the estimate."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return estimate + widen * np.minimum(low - estimate, 0.0), estimate + widen * np.maximum(high - estimate, 0.0)


def symmetric_interval(estimate: float, draws: Array, confidence: float, widen: float) -> tuple[float, float]:
    """The estimate plus and minus the widened quantile of the [B] draws' distances from it (Hall 1988).

    Near a bound, all percentiles of the draws may lie on one side of the estimate. This interval always contains it,
    and its coverage error is of higher order (J. R. Stat. Soc. B 50:35-45).
    """
    half = widen * float(np.quantile(np.abs(draws - estimate), confidence))
    return estimate - half, estimate + half


def finite_interval(
    estimate: Array, draws: Array, confidence: float, widen: float
) -> tuple[Array, Array, NDArray[np.int64]]:
    """`interval` from the finite draws at each of [n] points, and the number of draws there that are not finite.

    The interval is NaN at points where more than a share LOST of the draws is not finite.
    """
    lost = np.sum(~np.isfinite(draws), axis=0)
    low, high = np.full(estimate.shape, np.nan), np.full(estimate.shape, np.nan)
    whole = lost == 0
    low[whole], high[whole] = interval(estimate[whole], draws[:, whole], confidence, widen)
    for i in np.flatnonzero((lost > 0) & (lost <= LOST * len(draws))):
        kept = draws[np.isfinite(draws[:, i]), i]
        low[i], high[i] = interval(estimate[i], kept, confidence, widen)
    return low, high, lost

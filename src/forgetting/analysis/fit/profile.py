"""Profile-likelihood intervals: the values of a parameter at which the fit, with the others refitted, is good enough.

They follow the shape of the objective, which a bootstrap or a standard error may not. Because rows of one run are not
independent, the likelihood is rescaled so that its curvature gives the variance between runs (the vertical adjustment
of Chandler & Bate 2007, doi:10.1093/biomet/asm015), and the threshold uses Student's quantile with (runs - 1) degrees
of freedom, or those of the residuals for independent rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from forgetting.analysis.fit.bootstrap import left_out_residuals, student
from forgetting.analysis.fit.rounding import of_values
from forgetting.analysis.fit.shape import shape
from forgetting.analysis.fit.solver import Problem, minimise, to_theta, to_z
from forgetting.analysis.laws.base import Array

STEPS = 40  # points on each side of the estimate
REACH = 8.0  # standard errors to search on each side, or 1.5 times Student's quantile if that is more


def profile(
    problem: Problem, theta: Array, y: Array, weights: Array, run: Array | None, name: str, confidence: float
) -> tuple[float, float]:
    """The interval of one parameter.

    Args:
        problem: law in fitted coordinates, with a least-squares objective.
        theta: [K] the best fit.
        y, weights, run: [m] outputs, weights and run index; `run` is None if rows have independent errors of equal
            variance.
        name: the parameter, in fitted coordinates.
        confidence: nominal coverage.

    Returns:
        Lower and upper end. An end is NaN if the data do not limit the parameter on that side: the objective does not
        rise enough within the parameter's bounds and the searched range (REACH). Both are NaN if the parameter's
        standard error is unknown.
    """
    k = problem.law.names.index(name)
    log = problem.log_mask(False)
    looks = shape(problem, theta, y, weights)
    naive = looks.standard_errors[k] / (theta[k] if log[k] else 1.0)
    honest = naive
    if run is not None:
        honest = run_error(problem, theta, y, weights, run, looks.covariance, k) / (theta[k] if log[k] else 1.0)
    spare = int(np.sum(weights > 0)) - int(np.sum(~problem.fixed))
    cut = student(confidence, spare if run is None else int(run.max()))
    best = float(problem.objective.cost(problem.objective.residual(y, problem.values(theta[None])[0]), weights))
    if best <= float(np.sum(weights * of_values(problem, y) ** 2)):
        # the law fits up to rounding: the objective has no shape to follow, only its curvature
        both = to_z(theta, log)[k] + cut * honest * np.array([-1.0, 1.0])
        low_end, high_end = np.exp(both) if log[k] else both
        return float(low_end), float(high_end)
    if not (np.isfinite(naive) and np.isfinite(honest) and naive > 0 and honest > 0):
        return float("nan"), float("nan")
    needed = best * (1 + (cut * honest / naive) ** 2 / spare)
    ends = []
    for side in (-1.0, 1.0):
        low, high = problem.bounds(log)
        reach = max(REACH, 1.5 * cut) * honest * side
        grid = np.clip(to_z(theta, log)[k] + reach * np.linspace(0, 1, STEPS + 1)[1:], low[k], high[k])
        ends.append(_crossing(problem, theta, y, weights, k, grid, best, needed))
    low_end, high_end = np.exp(ends) if log[k] else np.array(ends)
    return float(low_end), float(high_end)


def run_error(problem: Problem, theta: Array, y: Array, weights: Array, run: Array, covariance: Array, k: int) -> float:
    """Standard error of parameter k when whole runs, not rows, are independent (CR3)."""
    free = np.isfinite(np.diag(covariance))
    if not free[k]:
        return float("nan")
    residual = left_out_residuals(problem, theta, y, weights, run) * np.sqrt(weights)
    with np.errstate(all="ignore"):
        factor = np.asarray(problem.objective.jacobian_factor(problem.values(theta[None])[0])).reshape(-1, 1)
        jacobian = problem.gradient(theta[None])[0][:, free] * np.sqrt(weights)[:, None] * factor
    norm = np.linalg.norm(jacobian, axis=0)
    influence = np.linalg.pinv(jacobian / norm) / norm[:, None]
    row = influence[int(np.sum(free[:k]))]
    per_run = np.bincount(run, row * residual)
    return float(np.sqrt(np.sum(per_run**2)))


def _crossing(
    problem: Problem, theta: Array, y: Array, weights: Array, k: int, grid: Array, best: float, needed: float
) -> float:
    """Where the profile reaches `needed` along one side's grid; NaN if it does not."""
    held = replace(problem, held=problem.held | {problem.law.names[k]})
    log = problem.log_mask(False)
    z = np.repeat(to_z(theta, log)[None], grid.size, axis=0)
    z[:, k] = grid
    start = to_theta(z, log)
    cost = minimise(held, start, y[None], weights[None], max_iterations=300).cost
    above = np.flatnonzero(cost >= needed)
    if not above.size:
        return float("nan")
    i = int(above[0])
    before = (to_z(theta, log)[k], best) if i == 0 else (grid[i - 1], cost[i - 1])
    # the profile is nearly a parabola, so interpolate its square root linearly
    a, b, c = (np.sqrt(max(v - best, 0.0)) for v in (before[1], cost[i], needed))
    return float(before[0] + (grid[i] - before[0]) * (c - a) / max(b - a, 1e-300))

"""The objective around the best fit: standard errors, parameters at bounds, flat directions, condition number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forgetting.analysis.fit.orthogonal import orthogonal
from forgetting.analysis.fit.rounding import of_values
from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.laws.base import Array

PULL = 2.0
"""If the t statistic of a parameter at its bound exceeds this, the data favour a value beyond the bound."""
FLAT = 1e-7  # a direction is flat if its singular value of the normalised Jacobian is below this share of the largest


@dataclass(frozen=True)
class Shape:
    """The objective around its minimum.

    Attributes:
        condition: ratio of the largest to the smallest singular value of the Jacobian with unit-length columns.
        flat: directions that the data do not determine, each as {parameter: share}.
        at_bounds: parameters that stopped at a bound, with the bound.
        asks: for parameters at a bound where the data favour a value beyond it: `larger` or `smaller`.
        standard_errors: [K] from the Jacobian and the residual variance, for independent residuals; NaN for parameters
            that are at a bound, fixed by a gauge or without effect, and for all if a combination of them is flat or no
            degrees of freedom are left.
        covariance: [K, K] the covariance matrix, whose diagonal gives the standard errors.
    """

    condition: float
    flat: list[dict[str, float]]
    at_bounds: dict[str, float]
    asks: dict[str, str]
    standard_errors: Array
    covariance: Array


def shape(problem: Problem, theta: Array, y: Array, weights: Array) -> Shape:
    """Compute the shape of the objective around theta [K], given [m] outputs and weights."""
    log = problem.log_mask(False)
    names = problem.law.names
    free = problem.movable(theta)
    bound = ~free & ~problem.fixed
    with np.errstate(all="ignore"):
        f = problem.values(theta[None])[0]
        factor = np.asarray(problem.objective.jacobian_factor(f))
        jacobian = problem.gradient(theta[None])[0] * np.where(log, theta, 1.0)
        jacobian = jacobian * (factor[:, None] if factor.ndim else factor) * np.sqrt(weights)[:, None]
        residual = np.sqrt(weights) * problem.objective.residual(y, f)
    jacobian = np.nan_to_num(jacobian)
    norm = np.linalg.norm(jacobian, axis=0)
    # a parameter has no effect if a change by its own size changes only the last digits
    size = np.where(log, 1.0, np.maximum(np.abs(theta), 1.0))
    rounded = float(np.linalg.norm(np.sqrt(weights) * of_values(problem, y)))
    none = np.where(problem.linear, norm == 0, norm * size <= rounded)
    flat = [{names[k]: 1.0} for k in np.flatnonzero(free & none)]
    free &= ~none
    unit = jacobian[:, free] / norm[free]
    columns, back = orthogonal(unit, problem.solvable[free])
    left, singular, right = np.linalg.svd(columns, full_matrices=False)
    right = np.linalg.solve(back, right.T).T
    at = np.flatnonzero(free)
    for value, row in zip(singular, right, strict=True):
        if value <= FLAT * singular[0]:
            shares = row / np.linalg.norm(row)
            flat.append({names[at[i]]: round(float(v), 3) for i, v in enumerate(shares) if abs(v) > 0.2})
    covariance = np.full((theta.size, theta.size), np.nan)
    spare = int(np.sum(weights > 0)) - at.size
    if spare > 0 and at.size and singular[-1] > FLAT * singular[0]:
        scale = np.where(log, theta, 1.0)[free] / norm[free]
        inverse = (right.T / singular**2) @ right
        with np.errstate(over="ignore", invalid="ignore"):
            covariance[np.ix_(free, free)] = inverse * np.outer(scale, scale) * float(residual @ residual) / spare
    singular = np.linalg.svd(unit, compute_uv=False)
    condition = float(singular[0] / singular[-1]) if singular.size and singular[-1] > 0 else float("inf")
    told = np.linalg.norm(residual) > rounded  # else the data favour nothing
    asks = _asks(names, jacobian, left, np.nan_to_num(residual), np.flatnonzero(bound), spare) if told else {}
    at_bounds = {names[k]: float(theta[k]) for k in np.flatnonzero(bound)}
    return Shape(condition, flat, at_bounds, asks, np.sqrt(np.diag(covariance)), covariance)


def _asks(
    names: Sequence[str], jacobian: Array, basis: Array, residual: Array, bound: Array, spare: int
) -> dict[str, str]:
    """Parameters at a bound for which the data favour a `larger` or `smaller` value, by a score test of each."""
    out = {}
    for k in bound:
        own = jacobian[:, k] - basis @ (basis.T @ jacobian[:, k])
        length = np.linalg.norm(own) * np.linalg.norm(residual)
        share = float(own @ residual) / length if length > 0 else 0.0
        if spare > 1 and share**2 * (spare - 1) > PULL**2 * (1 - share**2):
            out[names[k]] = "larger" if share > 0 else "smaller"
    return out

"""Validation of a fitted law: AICc, errors on left-out runs, and the scatter of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.rounding import of_values
from forgetting.analysis.fit.solver import Problem, minimise
from forgetting.analysis.laws.base import Array

FOLDS = 60  # up to this many runs are left out one by one; more are left out in this many groups


def aicc(problem: Problem, cost: float, y: Array, weights: Array) -> float | None:
    """Akaike's criterion with the correction for few data (Hurvich & Tsai 1989); None if it is not defined.

    The variance counts as a parameter, and every measured value as independent. Of two laws that fit up to rounding,
    the one with fewer parameters is better.

    Args:
        problem: law in fitted coordinates; its rows are not used.
        cost: the objective at the best fit.
        y, weights: [O, n] outputs and their weights.
    """
    cost = max(cost, float(np.sum(weights * of_values(problem, y) ** 2)))
    n = int(np.sum(weights > 0))
    k = int(np.sum(~problem.fixed)) + 1
    if not problem.objective.quadratic or n - k - 1 <= 0 or cost <= 0:
        return None
    return float(n * np.log(cost / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def leave_one_run_out(problem: Problem, theta: Array, data: Data, weights: Array) -> dict[str, Any] | None:
    """Root mean square error on runs left out of the fit, `rmse` by output, and the number of fits, `folds`.

    For objectives of logarithms also `relative`, the error of the logarithm. None for fewer than three runs.

    Args:
        problem: law in fitted coordinates.
        theta: [K] the best fit, from which each refit starts.
        data: the table.
        weights: [O, n] weights.
    """
    runs = len(data.runs)
    if runs < 3:
        return None
    folds = min(runs, FOLDS)
    fold = data.run % folds
    kept = (fold[None] != np.arange(folds)[:, None]).astype(float)
    every = np.tile(kept, (1, data.y.shape[0])) * weights.reshape(1, -1)
    solution = minimise(
        problem, np.repeat(theta[None], folds, axis=0), data.y.reshape(1, -1), every, max_iterations=60, tolerance=1e-6
    )
    with np.errstate(all="ignore"):
        predicted = problem.values(solution.theta).reshape(folds, *data.y.shape)
    error = data.y - predicted[fold, :, np.arange(data.n)].T
    out: dict[str, Any] = {"rmse": root_mean_square(error, problem.law.outputs), "folds": folds}
    if problem.objective.log:
        with np.errstate(all="ignore"):
            relative = problem.objective.residual(data.y, data.y - error)
        out["relative"] = root_mean_square(relative, problem.law.outputs)
    return out


def root_mean_square(error: Array, outputs: Sequence[str]) -> dict[str, float]:
    """Root mean square of [O, n] errors by output."""
    return dict(zip(outputs, np.sqrt(np.mean(error**2, axis=1)).tolist(), strict=True))


def scatter(residual: Array, left_out: Array, outputs: Sequence[str]) -> dict[str, float]:
    """Standard deviation of a new run's measurement around the law's mean, by output.

    Residuals of the fit are too small, because the fit follows its runs; residuals of left-out runs are too large,
    because they include the error of the mean. The geometric mean of their mean squares corresponds to residuals
    divided by sqrt(1 - h), which is unbiased if errors within a run are equal (HC2: MacKinnon & White 1985,
    doi:10.1016/0304-4076(85)90158-7).

    Args:
        residual: [O, n] residuals of the fit.
        left_out: [O, n] residuals of each run in a fit without it.
        outputs: names of the outputs.
    """
    square = np.sqrt(np.mean(residual**2, axis=1) * np.mean(left_out**2, axis=1))
    return dict(zip(outputs, np.sqrt(square).tolist(), strict=True))


def run_noise(problem: Problem, theta: Array, data: Data) -> dict[str, dict[str, float]]:
    """Standard deviations of the residuals' run means (`between`) and around them (`within`), by output."""
    with np.errstate(all="ignore"):
        residual = data.y - problem.values(theta[None])[0].reshape(data.y.shape)
    return between_and_within(residual, data.run, problem.law.outputs)


def between_and_within(residual: Array, run: Array, outputs: Sequence[str]) -> dict[str, dict[str, float]]:
    """`run_noise` of [O, n] residuals, given the [n] run index of each row."""
    count = np.bincount(run)
    out = {}
    for name, mine in zip(outputs, residual, strict=True):
        means = np.bincount(run, mine) / count
        out[name] = {"between": float(np.std(means)), "within": float(np.std(mine - means[run]))}
    return out

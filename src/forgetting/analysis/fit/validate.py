"""How well a fitted law predicts what it was not fitted to, and how its errors are spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.solver import Problem, minimise
from forgetting.analysis.laws.base import Array

FOLDS = 60  # runs are left out one by one up to this many, in groups beyond


def aicc(problem: Problem, cost: float, weights: Array) -> float | None:
    """Akaike's criterion corrected for few data (Hurvich & Tsai 1989); None unless it is defined.

    The variance counts as a parameter, and every measured value as independent.
    """
    n = int(np.sum(weights > 0))
    k = int(np.sum(~problem.fixed)) + 1
    if not problem.objective.quadratic or n - k - 1 <= 0 or cost <= 0:
        return None
    return float(n * np.log(cost / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def leave_one_run_out(problem: Problem, theta: Array, data: Data, weights: Array) -> dict[str, Any] | None:
    """Root mean square error on runs that were left out of the fit, by output, and the number of fits.

    For objectives of logarithms also that of logarithms, `relative`.

    Args:
        problem: law in fitted coordinates.
        theta: [K] the best fit, from which every other starts.
        data: the table.
        weights: [O, n].
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
    out: dict[str, Any] = {"rmse": _root_mean_square(error, problem.law.outputs), "folds": folds}
    if problem.objective.log:
        with np.errstate(all="ignore"):
            relative = problem.objective.residual(data.y, data.y - error)
        out["relative"] = _root_mean_square(relative, problem.law.outputs)
    return out


def _root_mean_square(error: Array, outputs: Sequence[str]) -> dict[str, float]:
    return dict(zip(outputs, np.sqrt(np.mean(error**2, axis=1)).tolist(), strict=True))


def scatter(residual: Array, left_out: Array, outputs: Sequence[str]) -> dict[str, float]:
    """Standard deviation of a new run's measurement around the law's mean, by output.

    Residuals of the fit are too small, since the fit follows its runs; residuals of runs left out of it are too large,
    since they hold the error of the mean as well. The geometric mean of both mean squares is that of residuals over
    sqrt(1 - h), which is unbiased where errors within a run are alike (HC2: MacKinnon & White 1985,
    doi:10.1016/0304-4076(85)90158-7).

    Args:
        residual: [O, n] of the fit.
        left_out: [O, n], each run's as if it had been left out.
        outputs: names.
    """
    square = np.sqrt(np.mean(residual**2, axis=1) * np.mean(left_out**2, axis=1))
    return dict(zip(outputs, np.sqrt(square).tolist(), strict=True))


def run_noise(problem: Problem, theta: Array, data: Data) -> dict[str, dict[str, float]]:
    """Standard deviation of the residuals' run means (`between`) and around them (`within`), by output."""
    with np.errstate(all="ignore"):
        residual = data.y - problem.values(theta[None])[0].reshape(data.y.shape)
    count = np.bincount(data.run)
    out = {}
    for o, name in enumerate(problem.law.outputs):
        means = np.bincount(data.run, residual[o]) / count
        within = residual[o] - means[data.run]
        out[name] = {"between": float(np.std(means)), "within": float(np.std(within))}
    return out

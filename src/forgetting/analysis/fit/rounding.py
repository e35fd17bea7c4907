"""The size of rounding errors. Differences that are no larger mean nothing, however small their scatter is."""

from __future__ import annotations

import numpy as np

from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.laws.base import ROUNDING, Array


def of_values(problem: Problem, y: Array) -> Array:
    """Bounds of the rounding errors of measured outputs of any shape, on the scale of residuals."""
    if not problem.objective.log:
        return np.asarray(ROUNDING * np.abs(y))
    with np.errstate(all="ignore"):
        return np.asarray(ROUNDING * (1 + np.abs(np.log(y))))


def of_residuals(problem: Problem, theta: Array, y: Array) -> Array:
    """[m] bounds of the rounding errors of residuals, on their scale.

    A law's value is no more accurate than its largest term. The terms are estimated by the derivatives with respect to
    relative changes of the parameters.

    Args:
        problem: law in fitted coordinates, variables of the rows, and objective.
        theta: [K] the best fit.
        y: [m] measured outputs.
    """
    with np.errstate(all="ignore"):
        f = problem.values(theta[None])[0]
        terms = np.abs(np.nan_to_num(problem.gradient(theta[None])[0])) @ np.abs(theta)
        size = np.abs(y) + np.abs(f) + terms
        if problem.objective.log:
            size = size / np.abs(f) + np.abs(np.log(y)) + np.abs(np.log(f))
    return ROUNDING * np.asarray(np.nan_to_num(size))

"""How well the data determine each parameter: graded by how far the objective rises while all others adjust.

A parameter is strong where the profile of the objective closes on both sides, weak where it closes on one, and not
determined where it closes on none: a number with an interval would claim what the data do not say (Raue et al. 2009,
doi:10.1093/bioinformatics/btp358).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from forgetting.analysis.fit.bootstrap import student
from forgetting.analysis.fit.shape import Shape
from forgetting.analysis.fit.solver import Problem, minimise, to_theta, to_z
from forgetting.analysis.laws.base import Adapted, Array, Law

REACH = (1.0, 2.0, 4.0)
"""Where the profile is looked at on each side, in half widths of the interval that its curvature promises."""
SPAN = 1.0
"""The same half width where there is no curvature to go by: a factor of e, or the value's own size."""


@dataclass(frozen=True)
class Grade:
    """Whether data limit a parameter from below and from above."""

    below: bool
    above: bool

    @property
    def level(self) -> str:
        """`strong`, `weak` or `none`."""
        return ("none", "weak", "strong")[self.below + self.above]


NONE = Grade(False, False)


@dataclass(frozen=True)
class Lowest:
    """A fit's lowest point and what is needed to judge how the objective rises around it.

    Attributes:
        problem: law in fitted coordinates, with the rows, or cells of rows, that are fitted.
        theta: [K].
        y, weights: [m] what it is fitted to.
        looks: the objective around it, its errors those of all rows as if they were independent.
        variance: the residual variance of all rows.
        runs: how many.
    """

    problem: Problem
    theta: Array
    y: Array
    weights: Array
    looks: Shape
    variance: float
    runs: int


def identify(law: Law, adapted: Adapted, at: Lowest, draws: Array | None, confidence: float) -> dict[str, Grade]:
    """The grade of each reported parameter but those held by a gauge, as far as it can be told.

    Args:
        law: as it is reported.
        adapted: the way from the fitted coordinates to the reported ones.
        at: the best fit.
        draws: [B, K] refits of resampled runs, by which errors of whole runs are known; None where there are none.
        confidence: nominal coverage of intervals, by which a profile counts as closed.
    """
    flat = flat_names(at.looks)
    fitted = dict.fromkeys(flat, NONE)
    if draws is not None and at.problem.objective.quadratic:
        fitted |= _profiled(at, draws, confidence, skip=flat)
    return public_grades(law, adapted, fitted)


def flat_names(looks: Shape) -> set[str]:
    """Fitted parameters that have a share in a flat direction."""
    return {name for direction in looks.flat for name in direction}


def public_grades(law: Law, adapted: Adapted, fitted: Mapping[str, Grade]) -> dict[str, Grade]:
    """Grades of reported parameters: of a mixture, those of its worst part; parameters without a grade are left out."""
    out = {}
    for p in law.parameters:
        parts = [fitted[name] for name in adapted.made_of(p.name) if name in fitted]
        if p.gauge is None and parts:
            worst = min(parts, key=lambda grade: grade.below + grade.above)
            # which end of a mixture is open does not follow from its parts
            mixed = len(parts) > 1 and worst.level == "weak"
            out[p.name] = Grade(True, True) if mixed else worst
    return out


def _profiled(at: Lowest, draws: Array, confidence: float, skip: set[str]) -> dict[str, Grade]:
    problem, theta = at.problem, at.theta
    log = problem.log_mask(False)
    names = problem.law.names
    with np.errstate(all="ignore"):
        naive = at.looks.standard_errors / np.where(log, theta, 1.0)
        spread = np.quantile(to_z(draws, log), [0.16, 0.84], axis=0)
    honest = (spread[1] - spread[0]) / 2
    known = np.isfinite(honest) & np.isfinite(naive) & (honest > 0) & (naive > 0)
    if not known.any():
        return {}
    ratio = np.where(known, honest / np.where(known, naive, 1.0), np.median(honest[known] / naive[known]))
    cut = student(confidence, at.runs - 1)
    best = float(problem.objective.cost(problem.objective.residual(at.y, problem.values(theta[None])[0]), at.weights))
    out = {}
    for k, name in enumerate(names):
        if problem.fixed[k] or name in skip:
            continue
        half = cut * honest[k] if known[k] else SPAN * (1.0 if log[k] else max(abs(theta[k]), 1.0))
        rise = _costs(problem, theta, k, half, at.y[None], at.weights[None]) - best
        below, above = np.split(rise >= at.variance * (cut * ratio[k]) ** 2, 2)
        out[name] = Grade(bool(below.any()), bool(above.any()))
    return out


def _costs(problem: Problem, theta: Array, k: int, half: float, y: Array, w: Array) -> Array:
    """The objective with parameter k held at REACH half widths below, then above, all others adjusted."""
    log = problem.log_mask(False)
    low, high = problem.bounds(log)
    at = to_z(theta, log)
    held = replace(problem, held=problem.held | {problem.law.names[k]})
    z = np.repeat(at[None], 2 * len(REACH), axis=0)
    moves = half * np.array([*(-r for r in REACH), *REACH])
    z[:, k] = np.clip(at[k] + moves, low[k], high[k])
    found = minimise(held, to_theta(z, log), y, w, max_iterations=100, tolerance=1e-6).cost
    # a start that the solver cannot leave says nothing, and a bound is no limit that the data set
    return np.where(np.isfinite(found) & (z[:, k] != at[k]), found, 0.0)

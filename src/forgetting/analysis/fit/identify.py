"""Grades how well the data determine each parameter, by its profile: the objective with the others refitted.

A parameter is `strong` if the profile rises enough on both sides of the estimate, `weak` if it does on one side, and
`none` if it does on neither. A parameter graded `none` gets no interval: it would mislead (Raue et al. 2009,
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
"""Distances from the estimate at which the profile is evaluated, in half widths of the interval from its curvature."""
SEEN, LEAST = 1e-5, 1e-10
"""Smallest half width: SEEN standard errors for independent rows, and a change of the values by a share LEAST."""
SPAN = 1.0
"""Half width if the curvature is unknown: of the logarithm for positive parameters, else a share of max(|value|, 1)."""


@dataclass(frozen=True)
class Grade:
    """Whether the data limit a parameter from below and from above."""

    below: bool
    above: bool

    @property
    def level(self) -> str:
        """`strong`, `weak` or `none`."""
        return ("none", "weak", "strong")[self.below + self.above]


NONE = Grade(False, False)


@dataclass(frozen=True)
class Lowest:
    """The best fit, and what is needed to evaluate profiles around it.

    Attributes:
        problem: law in fitted coordinates, with the fitted rows or cells of rows.
        theta: [K] the best fit.
        y, weights: [m] fitted values and their weights.
        looks: the objective around the best fit; its standard errors treat all rows as independent.
        variance: the residual variance of all rows.
        runs: number of independent runs or groups; for independent rows, degrees of freedom of the residuals plus 1.
    """

    problem: Problem
    theta: Array
    y: Array
    weights: Array
    looks: Shape
    variance: float
    runs: int


def identify(law: Law, adapted: Adapted, at: Lowest, draws: Array | None, confidence: float) -> dict[str, Grade]:
    """The grade of each reported parameter that is not fixed by a gauge, as far as it is known.

    Args:
        law: the reported law.
        adapted: converts fitted coordinates to reported parameters.
        at: the best fit.
        draws: [B, K] refits of resampled runs, which give the errors between runs; None without them.
        confidence: nominal coverage of the intervals; determines how far a profile must rise.
    """
    flat = flat_names(at.looks)
    fitted = dict.fromkeys(flat, NONE)
    if draws is not None and at.problem.objective.quadratic:
        fitted |= _profiled(at, draws, confidence, skip=flat)
    return public_grades(law, adapted, fitted)


def flat_names(looks: Shape) -> set[str]:
    """Fitted parameters that take part in a flat direction."""
    return {name for direction in looks.flat for name in direction}


def public_grades(law: Law, adapted: Adapted, fitted: Mapping[str, Grade]) -> dict[str, Grade]:
    """Grades of reported parameters; one that depends on several coordinates has the grade of the worst of them.

    If that is `weak`, it counts as limited on both sides.
    """
    out = {}
    for p in law.parameters:
        parts = [fitted[name] for name in adapted.made_of(p.name) if name in fitted]
        if p.gauge is None and parts:
            worst = min(parts, key=lambda grade: grade.below + grade.above)
            # the parts do not say on which side their combination is unlimited
            mixed = len(parts) > 1 and worst.level == "weak"
            out[p.name] = Grade(True, True) if mixed else worst
    return out


def _profiled(at: Lowest, draws: Array, confidence: float, skip: set[str]) -> dict[str, Grade]:
    """Grades of the fitted coordinates from their profiles, except of those in `skip`."""
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
    # a step must change the objective by more than rounding
    values = 1.0 if problem.objective.log else at.y
    size = float(np.sqrt(np.mean(at.weights * values**2)))
    least = max(SEEN, LEAST * size / np.sqrt(at.variance)) if at.variance > 0 else 0.0
    honest = np.where(known, np.maximum(honest, least * naive), honest)
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
    """The objective with parameter k held at REACH half widths below and then above the estimate, others refitted."""
    log = problem.log_mask(False)
    low, high = problem.bounds(log)
    at = to_z(theta, log)
    held = replace(problem, held=problem.held | {problem.law.names[k]})
    z = np.repeat(at[None], 2 * len(REACH), axis=0)
    moves = half * np.array([*(-r for r in REACH), *REACH])
    z[:, k] = np.clip(at[k] + moves, low[k], high[k])
    found = minimise(held, to_theta(z, log), y, w, max_iterations=100, tolerance=1e-6).cost
    # ignore refits that failed, and points that a bound keeps at the estimate: the data do not set that limit
    return np.where(np.isfinite(found) & (z[:, k] != at[k]), found, 0.0)

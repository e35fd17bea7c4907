"""How well the reference's own line explains forgetting: R², scatter, and whether its slope differs from zero.

If forgetting does not depend on what is held equal, "less at an equal loss" only means "less than the reference's
mean", and being below the line is not a saving. The test uses the slope of the curve through the reference, with the
standard error of a jackknife that leaves out one run at a time, so that the measurements of a run count as one (cluster
jackknife; MacKinnon, Nielsen & Webb 2023, doi:10.1002/jae.2942), and Student's t with one degree of freedom fewer than
runs. For a parabola, slope and curvature are tested, each at half the error level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forgetting.analysis.compare.estimate import NAN, Estimate, student
from forgetting.analysis.compare.path import Path
from forgetting.analysis.laws.base import Array


@dataclass(frozen=True)
class Trend:
    """How well the curve through the reference's runs explains what they forgot.

    Attributes:
        r2: 1 - SS_res / SS_tot of forgetting, with equal weight per run; NaN if all runs forgot the same.
        scatter: standard deviation of forgetting around the curve, nats/token; NaN without degrees of freedom.
        slope: nats/token of forgetting per unit of what is held equal, at the middle, in the table's direction.
        explains: whether the slope, or a parabola's curvature, differs from zero.
        runs: number of the reference's runs.
        points: number of their measurements on the curve.
    """

    r2: float
    scatter: float
    slope: Estimate
    explains: bool
    runs: int
    points: int


def trend(paths: Sequence[Path], degree: int, confidence: float, sign: float = 1.0) -> Trend:
    """Assess the polynomial of this degree through these paths.

    Args:
        paths: the paths of all the reference's runs.
        degree: 1 for a line, 2 for a parabola.
        confidence: nominal coverage of the slope's interval; 1 minus the level of the test.
        sign: -1 if the paths' x is minus the table's column.
    """
    x, y, weight = _points(paths)
    middle = float(np.average(x, weights=weight))
    found = _polynomial(x - middle, y, weight, degree)
    residual = y - np.polyval(found, x - middle)
    total = float(weight @ (y - np.average(y, weights=weight)) ** 2)
    left = float(weight @ residual**2)
    freedom = x.size - degree - 1
    slope, *bend = _jackknife(paths, middle, degree, found, 1 - (1 - confidence) / degree)
    shown = slope if degree == 1 else _jackknife(paths, middle, degree, found, confidence)[0]
    return Trend(
        r2=1 - left / total if total > 0 else NAN,
        scatter=math.sqrt(left / len(paths) * x.size / freedom) if freedom > 0 else NAN,
        slope=shown if sign > 0 else Estimate(-shown.value, -shown.high, -shown.low, shown.p, shown.freedom),
        explains=any(e.known and not e.low <= 0 <= e.high for e in (slope, *bend)),
        runs=len(paths),
        points=x.size,
    )


def _points(paths: Sequence[Path]) -> tuple[Array, Array, Array]:
    """All points, with weights that add up to 1 for each run."""
    x, y = np.concatenate([p.x for p in paths]), np.concatenate([p.y for p in paths])
    return x, y, np.concatenate([np.full(p.x.size, 1 / p.x.size) for p in paths])


def _polynomial(x: Array, y: Array, weight: Array, degree: int) -> Array:
    """Coefficients, highest power first; those that the points cannot determine are 0."""
    able = min(degree, np.unique(x).size - 1)
    # scaled by the largest size, for numerical accuracy
    unit = float(np.abs(x).max()) or 1.0
    root = np.sqrt(weight)
    found = np.linalg.lstsq(np.vander(x / unit, able + 1) * root[:, None], y * root, rcond=None)[0]
    return np.concatenate([np.zeros(degree - able), found / unit ** np.arange(able, -1, -1)])


def _jackknife(paths: Sequence[Path], middle: float, degree: int, found: Array, confidence: float) -> list[Estimate]:
    """The slope at the middle and, for a parabola, the curvature, each with its interval; NaN intervals for one run."""
    runs = len(paths)
    wanted = [degree - power for power in range(1, degree + 1)]  # indices of x, x²
    if runs < 2:
        return [Estimate(float(found[i]), runs=runs, why="one run") for i in wanted]
    each = []
    for out in range(runs):
        x, y, weight = _points([p for i, p in enumerate(paths) if i != out])
        each.append(_polynomial(x - middle, y, weight, degree))
    spread = (np.array(each) - found) ** 2
    errors = np.sqrt((runs - 1) / runs * spread.sum(axis=0))
    return [student(float(found[i]), float(errors[i]), runs - 1, confidence, runs, "jackknife") for i in wanted]

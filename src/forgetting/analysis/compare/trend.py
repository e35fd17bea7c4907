"""What the reference's own line says of forgetting: R², scatter, and whether its slope can be told from none.

Where forgetting does not depend on what is held equal, "less at an equal loss" means nothing more than "less than the
reference's mean", and a place below the line is no saving. The test: the slope of the curve through the reference, with
the error of the jackknife that leaves out one run at a time, which takes the measurements of a run as one (cluster
jackknife; MacKinnon, Nielsen & Webb 2023, doi:10.1002/jae.2942), and Student's t with one degree of freedom less than
runs. Of a parabola the slope and the bend are tested, each at half the error.
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
    """How well the curve through the reference's runs says what they forgot.

    Attributes:
        r2: 1 - SS_res / SS_tot of forgetting, every run counting the same; NaN where all runs forgot the same.
        scatter: standard deviation of forgetting around the curve, nats/token; NaN where the curve has no freedom left.
        slope: nats/token of forgetting a unit of what is held equal, at the middle, in the table's direction.
        explains: whether the slope, or a parabola's bend, differs from none.
        runs: of the reference.
        points: measurements of them on the curve.
    """

    r2: float
    scatter: float
    slope: Estimate
    explains: bool
    runs: int
    points: int


def trend(paths: Sequence[Path], degree: int, confidence: float, sign: float = 1.0) -> Trend:
    """Judge the polynomial of this degree through these paths.

    Args:
        paths: of all the reference's runs.
        degree: 1 of a line, 2 of a parabola.
        confidence: of the slope's interval, and of the test.
        sign: -1 where the paths' x is less the table's column.
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
    """All points, and weights that add up to 1 over each run."""
    x, y = np.concatenate([p.x for p in paths]), np.concatenate([p.y for p in paths])
    return x, y, np.concatenate([np.full(p.x.size, 1 / p.x.size) for p in paths])


def _polynomial(x: Array, y: Array, weight: Array, degree: int) -> Array:
    """Coefficients, highest power first; those that the points cannot tell are 0."""
    able = min(degree, np.unique(x).size - 1)
    # in units of the spread, for the digits
    unit = float(np.abs(x).max()) or 1.0
    root = np.sqrt(weight)
    found = np.linalg.lstsq(np.vander(x / unit, able + 1) * root[:, None], y * root, rcond=None)[0]
    return np.concatenate([np.zeros(degree - able), found / unit ** np.arange(able, -1, -1)])


def _jackknife(paths: Sequence[Path], middle: float, degree: int, found: Array, confidence: float) -> list[Estimate]:
    """The slope at the middle and, of a parabola, the bend, each with its interval; one run has none."""
    runs = len(paths)
    wanted = [degree - power for power in range(1, degree + 1)]  # places of x, x²
    if runs < 2:
        return [Estimate(float(found[i]), runs=runs, why="one run") for i in wanted]
    each = []
    for out in range(runs):
        x, y, weight = _points([p for i, p in enumerate(paths) if i != out])
        each.append(_polynomial(x - middle, y, weight, degree))
    spread = (np.array(each) - found) ** 2
    errors = np.sqrt((runs - 1) / runs * spread.sum(axis=0))
    return [student(float(found[i]), float(errors[i]), runs - 1, confidence, runs, "jackknife") for i in wanted]

"""Intervals of a fit's parameters: from resampled runs, or from profile likelihood."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from forgetting.analysis.fit.bootstrap import LOST, MIN_RUNS, Draws, resample, scheme_for, symmetric_interval
from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.estimate import BOUND, Estimate
from forgetting.analysis.fit.identify import Grade
from forgetting.analysis.fit.profile import profile
from forgetting.analysis.fit.search import Found
from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.laws.base import Adapted, Array, Law
from forgetting.display.numbers import several

LEAST_DRAWS = 20
"""Resamples that a quantile needs."""
LOOSE = 30.0  # ratio of an interval's ends above which a positive parameter is all but unknown


def too_few(count: int, unit: str) -> str:
    """A warning that so few runs (or rows) cannot be resampled."""
    are = f"{several(count, unit)} {'is' if count == 1 else 'are'}"
    return f"no intervals: {are} too few to resample (at least {MIN_RUNS} are needed)"


def can_draw(data: Data, count: int, spare: int, warnings: list[str]) -> bool:
    """Whether there is anything to resample; warns where there is not.

    Args:
        data: the table.
        count: resamples asked for.
        spare: measured values less parameters that the fit could move.
        warnings: to add to.
    """
    runs = len(data.runs)
    if count == 0:
        return False
    if spare <= 0:
        warnings.append(
            f"no intervals: no degrees of freedom are left, since {several(data.y.size, 'measured value')} "
            f"{'was' if data.y.size == 1 else 'were'} fitted with {several(data.y.size - spare, 'parameter')}; "
            "use more rows, or a law with fewer parameters"
        )
        return False
    if runs < MIN_RUNS:
        warnings.append(too_few(runs, "row" if data.independent or data.iid else "run"))
        return False
    if count < LEAST_DRAWS:
        warnings.append(f"no intervals: {count} resamples are too few (at least {LEAST_DRAWS} are needed)")
        return False
    if data.independent:
        warnings.append("the table names no runs: treating every row as an independent run")
    return True


def spare_values(problem: Problem, weights: Array, at_bounds: Collection[str]) -> int:
    """Degrees of freedom of the residuals: values of a weight, less parameters that are not held nor at a bound."""
    return int(np.sum(weights > 0)) - int(np.sum(~problem.fixed)) + len(at_bounds)


def enough(draws: Draws, count: int, warnings: list[str]) -> bool:
    """Whether nearly all resamples could be fitted; warns where not."""
    if draws.lost > 0.1 * count:
        warnings.append(f"no intervals: {draws.lost} of {count} resamples could not be fitted")
        return False
    return True


def draw(
    problem: Problem,
    found: Found,
    data: Data,
    weights: Array,
    count: int,
    spare: int,
    rng: np.random.Generator,
    warnings: list[str],
) -> Draws | None:
    """Bootstrap refits, or None and a warning where no interval would be honest."""
    if not can_draw(data, count, spare, warnings):
        return None
    scheme = scheme_for(problem, iid=data.iid)
    draws = resample(problem, found.theta, data.y, weights, data.run, count=count, rng=rng, scheme=scheme, spare=spare)
    return draws if enough(draws, count, warnings) else None


def estimates(
    law: Law, theta: Array, draws: Array | None, confidence: float, widen: float, grades: Mapping[str, Grade]
) -> dict[str, Estimate]:
    """Values, symmetric bootstrap intervals and grades by name; positive parameters have theirs in the logarithm.

    A parameter that the data do not determine has no interval, and one that they limit on one side has that end alone.
    """
    out = {}
    for k, p in enumerate(law.parameters):
        value, grade = float(theta[k]), grades.get(p.name)
        level = "" if grade is None else grade.level
        if draws is None or p.gauge is not None or level == "none":
            out[p.name] = Estimate(value, identified=level)
            continue
        low, high = _limits(value, draws[:, k], confidence, widen, log=p.log)
        low, high = np.clip([low, high], p.low, p.high)
        if p.log and high > LOOSE * low:
            level = "weak"
        ends = [np.nan if grade is not None and not closed else end for end, closed in _sides(low, high, grade)]
        out[p.name] = Estimate(value, float(ends[0]), float(ends[1]), level)
    return out


def stopped(adapted: Adapted, law: Law, theta: Array, asks: Collection[str]) -> dict[str, Estimate]:
    """Parameters that stopped at a bound past which the data ask for: their value is the bound, without an interval.

    Args:
        adapted: the way from fitted coordinates; a parameter that has none of its own is left out.
        law: as it is reported.
        theta: [K] its values.
        asks: fitted parameters that the data pull past their bound.
    """
    named = zip(law.names, theta, strict=True)
    return {n: Estimate(float(v), identified=BOUND) for n, v in named if adapted.law is law and n in asks}


def _sides(low: float, high: float, grade: Grade | None) -> tuple[tuple[float, bool], tuple[float, bool]]:
    return (low, grade is None or grade.below), (high, grade is None or grade.above)


def _limits(value: float, draws: Array, confidence: float, widen: float, *, log: bool) -> tuple[float, float]:
    """The symmetric interval of the finite draws; NaN where too many are lost, or the value is none."""
    with np.errstate(all="ignore"):
        centre, points = (np.log(value), np.log(draws)) if log else (value, draws)
    kept = points[np.isfinite(points)]
    if not np.isfinite(centre) or points.size - kept.size > LOST * points.size:
        return np.nan, np.nan
    low, high = symmetric_interval(float(centre), kept, confidence, widen)
    with np.errstate(over="ignore"):
        return (float(np.exp(low)), float(np.exp(high))) if log else (low, high)


def profiles(
    problem: Problem,
    adapted: Adapted,
    found: Found,
    data: Data,
    weights: Array,
    parameters: dict[str, Estimate],
    confidence: float,
    warnings: list[str],
) -> dict[str, Estimate]:
    """Profile-likelihood intervals in place of the bootstrap's, for every parameter that is fitted as such."""
    if len(data.runs) < MIN_RUNS or spare_values(problem, weights, ()) <= 0:
        return {}
    out = {}
    alone = scheme_for(problem, iid=data.iid) == "normal"
    run = None if alone else np.tile(data.run, data.y.shape[0])
    for name, estimate in parameters.items():
        fitted = adapted.fitted_name(name)
        if fitted is None or estimate.identified == BOUND:
            out[name] = estimate
            continue
        low, high = profile(problem, found.theta, data.y.reshape(-1), weights.reshape(-1), run, fitted, confidence)
        level = ("none", "weak", "strong")[int(np.isfinite(low)) + int(np.isfinite(high))]
        open_ends = [side for side, end in (("below", low), ("above", high)) if not np.isfinite(end)]
        if open_ends:
            warnings.append(f"the data do not limit '{name}' {' or '.join(open_ends)}")
        out[name] = Estimate(estimate.value, low, high, level)
    return out


def loose(law: Law, parameters: dict[str, Estimate], flat: Sequence[Mapping[str, float]]) -> list[str]:
    """Sentences on parameters that the data do not determine, and whose interval spans more than a factor of LOOSE.

    Args:
        law: that was fitted.
        parameters: their estimates.
        flat: directions of which it was already said that the data do not determine them.
    """
    names = [
        p.name
        for p in law.parameters
        if p.log and parameters[p.name].low >= 0 and parameters[p.name].high > LOOSE * parameters[p.name].low
    ]
    lost = [
        name
        for name, estimate in parameters.items()
        if estimate.identified == "none" and not any(name in said for said in flat)
    ]
    out = [f"the data do not determine {', '.join(lost)}: trust predictions, not these"] if lost else []
    if names:
        said = f"{', '.join(names)} could be anything within a factor of {LOOSE:g} or more"
        out.append(f"{said}: trust predictions, not these")
    return out

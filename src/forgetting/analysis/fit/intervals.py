"""Intervals of a fit's parameters, from resampled runs or from profile likelihood."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from forgetting.analysis.fit.bootstrap import (
    LOST,
    MIN_RUNS,
    Draws,
    resample,
    scheme_for,
    sole_unit,
    symmetric_interval,
)
from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.estimate import BOUND, Estimate
from forgetting.analysis.fit.identify import Grade
from forgetting.analysis.fit.profile import profile
from forgetting.analysis.fit.search import Found
from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.laws.base import Adapted, Array, Law
from forgetting.display.numbers import several

LEAST_DRAWS = 20
"""Fewest resamples for a quantile."""
LOOSE = 30.0  # if the ends of a positive parameter's interval have a larger ratio, it is only weakly determined


def too_few(count: int, unit: str, by: Sequence[str] = ()) -> str:
    """A warning that there are too few rows, runs, or groups of runs (by the columns `by`) to resample."""
    named = f" of runs (by {' and '.join(by)})" if by else ""
    are = f"{several(count, unit)}{named} {'is' if count == 1 else 'are'}"
    return f"no intervals: {are} too few to resample (at least {MIN_RUNS} are needed)"


def can_draw(data: Data, count: int, spare: int, warnings: list[str]) -> bool:
    """Whether the data can be resampled; adds a warning if not.

    Args:
        data: the table.
        count: requested number of resamples.
        spare: number of measured values minus free parameters.
        warnings: list that warnings are added to.
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
        warnings.append(too_few(runs, data.unit, data.by))
        return False
    if count < LEAST_DRAWS:
        warnings.append(f"no intervals: {count} resamples are too few (at least {LEAST_DRAWS} are needed)")
        return False
    if data.independent:
        warnings.append("the table names no runs: treating every row as an independent run")
    return True


def no_other(data: Data, alone: int | None, warnings: list[str]) -> bool:
    """Whether no run (or row, or group) alone determines a direction; adds a warning about the one that does."""
    if alone is None:
        return True
    name = data.runs[alone]
    what = f"row {int(name) + 1}" if data.unit == "row" else f"{data.unit} '{name}'"
    said = (
        f"no intervals: {what} alone determines a combination of parameters, so no other {data.unit} shows its error; "
        f"add another {data.unit} like it, or leave it out"
    )
    warnings += [] if said in warnings else [said]
    return False


def spare_values(problem: Problem, weights: Array, at_bounds: Collection[str]) -> int:
    """Degrees of freedom of the residuals: values with positive weight minus parameters not fixed or at a bound."""
    return int(np.sum(weights > 0)) - int(np.sum(~problem.fixed)) + len(at_bounds)


def enough(draws: Draws, count: int, warnings: list[str]) -> bool:
    """Whether at least 90 % of the resamples could be fitted; adds a warning if not."""
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
    """Bootstrap refits; None, with a warning, if valid intervals are not possible."""
    if not can_draw(data, count, spare, warnings):
        return None
    scheme = scheme_for(problem, iid=data.iid)
    if scheme != "normal" and not no_other(data, sole_unit(problem, found.theta, weights, data.run), warnings):
        return None
    draws = resample(problem, found.theta, data.y, weights, data.run, count=count, rng=rng, scheme=scheme, spare=spare)
    return draws if enough(draws, count, warnings) else None


def estimates(
    law: Law, theta: Array, draws: Array | None, confidence: float, widen: float, grades: Mapping[str, Grade]
) -> dict[str, Estimate]:
    """Values, symmetric bootstrap intervals and grades by name; for `log` parameters symmetric in the logarithm.

    A parameter that the data do not determine has no interval; one that they limit on one side has only that end.

    Args:
        law: the reported law.
        theta: [K] the best fit.
        draws: [B, K] refits of resampled data; None for no intervals.
        confidence: nominal coverage.
        widen: factor on the half widths.
        grades: grades by name, as far as known.
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
    """Estimates, without intervals, of parameters that stopped at a bound although the data favour values beyond it.

    Args:
        adapted: the fitted coordinates; the result is empty unless these are the reported parameters.
        law: the reported law.
        theta: [K] reported values.
        asks: fitted parameters for which the data favour values beyond the bound.
    """
    named = zip(law.names, theta, strict=True)
    return {n: Estimate(float(v), identified=BOUND) for n, v in named if adapted.law is law and n in asks}


def _sides(low: float, high: float, grade: Grade | None) -> tuple[tuple[float, bool], tuple[float, bool]]:
    return (low, grade is None or grade.below), (high, grade is None or grade.above)


def _limits(value: float, draws: Array, confidence: float, widen: float, *, log: bool) -> tuple[float, float]:
    """The symmetric interval from the finite draws; NaN if too many are lost or the value is not finite."""
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
    """Profile-likelihood intervals, which replace the bootstrap's, for parameters that are fitted coordinates.

    Empty for too few runs or rows, and, with a warning, if a run alone determines a direction.
    """
    if len(data.runs) < MIN_RUNS or spare_values(problem, weights, ()) <= 0:
        return {}
    out = {}
    alone = scheme_for(problem, iid=data.iid) == "normal"
    if not alone and not no_other(data, sole_unit(problem, found.theta, weights, data.run), warnings):
        return {}
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
    """Warnings about parameters that the data do not determine, or only to within a factor of more than LOOSE.

    Args:
        law: the fitted law.
        parameters: estimates by name.
        flat: flat directions, which already have a warning.
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

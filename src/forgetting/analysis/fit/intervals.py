"""Intervals of a fit's parameters: from resampled runs, or from profile likelihood."""

from __future__ import annotations

import numpy as np

from forgetting.analysis.fit.bootstrap import MIN_RUNS, Draws, interval, resample, scheme_for
from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.estimate import Estimate
from forgetting.analysis.fit.profile import profile
from forgetting.analysis.fit.search import Found
from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.laws.base import Adapted, Array, Law

LOOSE = 30.0  # ratio of an interval's ends above which a positive parameter is all but unknown


def can_draw(data: Data, count: int, warnings: list[str]) -> bool:
    """Whether there are runs enough to resample; warns where there are not."""
    runs = len(data.runs)
    if count == 0:
        return False
    if runs < MIN_RUNS:
        warnings.append(f"no intervals: {runs} runs are too few to resample (at least {MIN_RUNS} are needed)")
        return False
    if data.independent:
        warnings.append("the table names no runs: every row was taken as an independent run")
    return True


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
    rng: np.random.Generator,
    warnings: list[str],
) -> Draws | None:
    """Bootstrap refits, or None and a warning where no interval would be honest."""
    if not can_draw(data, count, warnings):
        return None
    scheme = scheme_for(problem)
    draws = resample(problem, found.theta, data.y, weights, data.run, count=count, rng=rng, scheme=scheme)
    return draws if enough(draws, count, warnings) else None


def estimates(law: Law, theta: Array, draws: Array | None, confidence: float, widen: float) -> dict[str, Estimate]:
    """Values and bootstrap intervals by name; positive parameters are widened in the logarithm."""
    out = {}
    for k, p in enumerate(law.parameters):
        if draws is None or p.gauge is not None:
            out[p.name] = Estimate(float(theta[k]))
            continue
        with np.errstate(all="ignore"):
            if p.log:
                low, high = np.exp(interval(np.log(theta[k]), np.log(draws[:, k]), confidence, widen))
            else:
                low, high = interval(theta[k], draws[:, k], confidence, widen)
        low, high = np.clip([low, high], p.low, p.high)
        out[p.name] = Estimate(float(theta[k]), float(low), float(high))
    return out


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
    if len(data.runs) < MIN_RUNS:
        return {}
    out = {}
    run = np.tile(data.run, data.y.shape[0])
    for name, estimate in parameters.items():
        fitted = adapted.fitted_name(name)
        if fitted is None:
            out[name] = Estimate(estimate.value)
            continue
        low, high = profile(problem, found.theta, data.y.reshape(-1), weights.reshape(-1), run, fitted, confidence)
        open_ends = [side for side, end in (("below", low), ("above", high)) if not np.isfinite(end)]
        if open_ends:
            warnings.append(f"the data do not limit '{name}' {' or '.join(open_ends)}")
        out[name] = Estimate(estimate.value, low, high)
    return out


def loose(law: Law, parameters: dict[str, Estimate]) -> list[str]:
    """One sentence on positive parameters whose interval spans more than a factor of LOOSE."""
    names = [
        p.name
        for p in law.parameters
        if p.log and parameters[p.name].low >= 0 and parameters[p.name].high > LOOSE * parameters[p.name].low
    ]
    if not names:
        return []
    return [f"{', '.join(names)} could be anything within a factor of {LOOSE:g} or more: trust predictions, not these"]

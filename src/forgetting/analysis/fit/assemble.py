"""The parts of a Fit: what was estimated, what was learned on the way, and what a reader must be told."""

from __future__ import annotations

from typing import Any

import numpy as np

from forgetting.analysis.fit import large
from forgetting.analysis.fit.bootstrap import MIN_RUNS, Draws, interval, resample, scheme_for
from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.diagnose import Shape
from forgetting.analysis.fit.large import Cells
from forgetting.analysis.fit.objective import Objective
from forgetting.analysis.fit.profile import profile
from forgetting.analysis.fit.result import Estimate
from forgetting.analysis.fit.search import Found
from forgetting.analysis.fit.solver import Problem, minimise
from forgetting.analysis.fit.validate import aicc, leave_one_run_out, run_noise
from forgetting.analysis.laws.base import Adapted, Array, Law

LOOSE = 30.0  # ratio of an interval's ends above which a positive parameter is all but unknown
FEW = 0.05  # share of starts reaching the best below which the fit warns


def fit_warnings(problem: Problem, found: Found, looks: Shape, starts: int) -> list[str]:
    """Sentences on convergence, starts, bounds, flat directions and condition."""
    out = []
    if not found.converged:
        out.append(f"the fit did not converge: the best point found is not a minimum (slope {found.slope:.1e})")
    if starts and found.share < FEW:
        n = max(1, round(found.share * found.starts))
        out.append(f"only {n} of {found.starts} starts reached the best fit; a better one may exist")
    out += [
        f"'{name}' stopped at its bound {value:.6g}: it is not identified" for name, value in looks.at_bounds.items()
    ]
    for direction in looks.flat:
        out.append(f"the data do not determine {' and '.join(direction)}: a flat direction")
    if found.twin is not None and not looks.flat and not looks.at_bounds:
        k = int(np.argmax(np.abs(found.twin - found.theta) / (np.abs(found.theta) + 1e-12)))
        name = problem.law.names[k]
        out.append(
            f"another point fits equally well, with '{name}' {found.twin[k]:.5g} instead of {found.theta[k]:.5g}"
        )
    if not looks.flat and looks.condition > 1e6:
        out.append(f"parameters are nearly interchangeable (condition {looks.condition:.1e}); trust predictions more")
    return out


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


def r_squared(law: Law, data: Data, theta: Array) -> dict[str, float]:
    """1 - SS_res / SS_tot by output, every row counted once."""
    f = law.values(theta[None], data.x)[0]
    out = {}
    for o, name in enumerate(law.outputs):
        total = float(np.sum((data.y[o] - data.y[o].mean()) ** 2))
        out[name] = 1 - float(np.sum((data.y[o] - f[o]) ** 2)) / total if total > 0 else float("nan")
    return out


def diagnostics(
    problem: Problem,
    adapted: Adapted,
    data: Data,
    found: Found,
    looks: Shape,
    draws: Draws | None,
    weights: Array,
    cells: Cells | None = None,
) -> dict[str, Any]:
    """What was learned besides the parameters; weights are [O, n]; cells where rows were summed."""
    out: dict[str, Any] = {
        "converged": found.converged,
        "slope": found.slope,
        "starts": found.starts,
        "share_of_starts_at_best": found.share,
        "condition": looks.condition if np.isfinite(looks.condition) else None,
        "flat_directions": looks.flat,
        "at_bounds": looks.at_bounds,
        "gauge": list(adapted.notes),
        "standard_errors": {
            n: (float(s) if np.isfinite(s) else None)
            for n, s in zip(adapted.law.names, looks.standard_errors, strict=True)
        },
        "aicc": aicc(problem, found.cost, weights),
        "leave_one_run_out": leave_one_run_out(problem, found.theta, data, weights)
        if cells is None
        else large.leave_one_run_out(cells, found.theta),
        "run_noise": run_noise(problem, found.theta, data)
        if cells is None
        else large.run_noise(cells, found.theta, problem.law.outputs),
        "bootstrap": None if draws is None else {"scheme": draws.scheme, "count": len(draws.theta), "lost": draws.lost},
    }
    if "rank" in data.columns and "trainable_params" in data.x:
        ratio = data.x["trainable_params"] / data.columns["rank"]
        if np.isfinite(ratio).all() and float(np.ptp(ratio)) <= 1e-9 * float(ratio.max()):
            out["params_per_rank"] = float(ratio[0])
    floor = data.columns.get("forgetting_floor")
    if floor is not None and np.isfinite(floor).all() and float(np.ptp(floor)) < 1e-6:
        out["forgetting_floor"] = float(floor[0])
    if not problem.objective.quadratic:
        out["delta"] = problem.objective.delta
        out["delta_sensitivity"] = _delta_sensitivity(problem, found, data, weights)
    return out


def _delta_sensitivity(problem: Problem, found: Found, data: Data, weights: Array) -> dict[str, dict[str, float]]:
    """Parameters refitted with a delta ten times smaller and ten times larger (Besiroglu et al. 2024)."""
    out = {}
    for factor in (0.1, 10.0):
        delta = problem.objective.delta * factor
        other = Problem(problem.law, problem.x, Objective(problem.objective.name, delta))
        refit = minimise(other, found.theta[None], data.y.reshape(1, -1), weights.reshape(1, -1))
        out[f"{delta:g}"] = dict(zip(problem.law.names, refit.theta[0].tolist(), strict=True))
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

"""law + table -> Fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from forgetting.errors import ForgettingError, UsageError
from forgetting.fit.bootstrap import MIN_RUNS, Draws, interval, resample, scheme_for, widening
from forgetting.fit.data import Data, read_data
from forgetting.fit.diagnose import Shape, shape
from forgetting.fit.objective import Objective
from forgetting.fit.result import Estimate, Fit
from forgetting.fit.search import Found, search
from forgetting.fit.solver import Problem, minimise
from forgetting.laws import PUBLISHED, FunctionLaw, Law, get_law
from forgetting.laws.base import Adapted, Array

STARTS = 64
FEW = 0.05  # share of starts reaching the best below which the fit warns


def fit_law(
    law: str | Law,
    table: Any,
    *,
    label: str = "",
    objective: str = "least-squares",
    delta: float = 1e-3,
    seed: int = 0,
    bootstrap: int = 200,
    confidence: float = 0.95,
    columns: Mapping[str, str] | None = None,
    run: str = "run_id",
    weights: str = "none",
    starts: int = STARTS,
    start: Sequence[float] | None = None,
) -> Fit:
    """Fit a law to a table by its global optimum, with intervals from resampling whole runs.

    Args:
        law: a name of `LAWS`, or a law.
        table: a DataFrame, or a mapping from column names to sequences; one row a measurement.
        label: what is fitted, for reports and messages.
        objective: `least-squares`, `huber` or `huber-log`.
        delta: Huber's delta, in nats (`huber`) or relative (`huber-log`).
        seed: of starts and resamples; the same seed gives the same fit.
        bootstrap: resamples of whole runs; 0 for no intervals.
        confidence: nominal coverage of intervals.
        columns: the table's column for a variable or output, where its name differs.
        run: the column that says which rows belong together; `seed` resamples seeds instead of runs.
        weights: `none`, or `se` for 1 / standard error squared from the outputs' `..._se` columns.
        starts: points drawn from the law's starting region; 0 starts from `start` alone.
        start: [K] a point to start from as well, in the order of the law's parameters.

    Returns:
        The fit. It is returned, with warnings, even where it did not converge or could not identify a parameter.

    Raises:
        UsageError: an unknown name, or a mistake in the table.
        ForgettingError: no start led to a finite objective.
    """
    law = get_law(law) if isinstance(law, str) else law
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}; it must lie between 0 and 1, for example 0.95")
    if bootstrap < 0 or starts < 0 or (starts == 0 and start is None):
        raise UsageError("bootstrap and starts must not be negative, and starts=0 needs a start")
    data = read_data(law, table, columns=columns, label=label, run=run)
    return fit_data(
        law,
        data,
        label,
        Objective(objective, delta),
        seed,
        bootstrap,
        confidence,
        _weights(data, weights, label),
        starts,
        start,
    )


def fit_data(
    law: Law,
    data: Data,
    label: str,
    objective: Objective,
    seed: int,
    bootstrap: int,
    confidence: float,
    weights: Array,
    starts: int = STARTS,
    start: Sequence[float] | None = None,
) -> Fit:
    """`fit_law` for a table that has been read; weights are [O, n]."""
    adapted = law.adapt(data.x, data.y)
    problem = Problem(adapted.law, data.x, objective)
    _enough_rows(adapted.law, data, label)
    if objective.log and (data.y <= 0).any():
        raise UsageError(
            f"objective '{objective.name}' takes logarithms, but '{label}' has outputs that are not positive"
        )
    rng = np.random.default_rng(seed)
    y, w = data.y.reshape(-1), weights.reshape(-1)
    first = None if start is None else np.asarray(start, dtype=float)
    found = search(problem, y, w, starts=starts, rng=rng, first=first)
    if not np.isfinite(found.cost):
        raise ForgettingError(f"law '{law.name}' could not be evaluated on '{label}' from any of {found.starts} starts")
    looks = shape(problem, found.theta, y, w)
    theta = adapted.public(found.theta[None], data.y[None], np.ones((1, data.n)))[0]
    warnings = [*data.warnings, *law.hints(data.x, data.y), *_fit_warnings(found, looks, starts)]
    draws = _draws(problem, found, data, weights, bootstrap, rng, warnings)
    public = None if draws is None else adapted.public(draws.theta, draws.y, draws.weights)
    widen = widening(len(data.runs), confidence) if draws is not None else 1.0
    return Fit(
        law=law.name,
        label=label,
        parameters=_estimates(law, theta, public, confidence, widen),
        objective=objective.name,
        objective_value=found.cost,
        r2=_r2(law, data, theta),
        n_points=data.n,
        n_runs=len(data.runs),
        measured_range={k: (float(v.min()), float(v.max())) for k, v in data.x.items()},
        confidence=confidence,
        warnings=warnings,
        diagnostics=_diagnostics(problem, adapted, data, found, looks, objective, draws, w),
        draws=[] if public is None else public.tolist(),
        widen=widen,
        spec=law.spec,
        instance=law if isinstance(law, FunctionLaw) else None,
    )


def fit_from_published(name: str) -> Fit:
    """A law of `PUBLISHED` as a fit without intervals."""
    from forgetting.errors import did_you_mean

    if name not in PUBLISHED:
        raise UsageError(f"published law '{name}' is not known; {did_you_mean(name, PUBLISHED)}")
    p = PUBLISHED[name]
    return Fit(
        law=p.law.name,
        label=name,
        parameters={k: Estimate(float(p.parameters[k])) for k in p.law.names},
        objective="published",
        objective_value=float("nan"),
        r2=dict(p.r2),
        n_points=0,
        n_runs=0,
        measured_range=dict(p.measured_range),
        confidence=0.95,
        warnings=[f"published without intervals: {p.source}"],
        diagnostics={"note": p.note, **p.constants},
    )


def _weights(data: Data, weights: str, label: str) -> Array:
    if weights == "none":
        return np.ones_like(data.y)
    if weights != "se":
        raise UsageError(f"weights is '{weights}'; choices: none, se")
    if data.se is None:
        raise UsageError(f"weights 'se' needs a positive number in every ..._se column of the outputs of '{label}'")
    return np.asarray(1.0 / data.se**2)


def _enough_rows(law: Law, data: Data, label: str) -> None:
    free = sum(p.gauge is None for p in law.parameters)
    if data.y.size < free:
        raise UsageError(f"'{label}' has {data.y.size} measured values; law '{law.name}' has {free} free parameters")


def _fit_warnings(found: Found, looks: Shape, starts: int) -> list[str]:
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
    if not looks.flat and looks.condition > 1e6:
        out.append(f"parameters are nearly interchangeable (condition {looks.condition:.1e}); trust predictions more")
    return out


def _draws(
    problem: Problem,
    found: Found,
    data: Data,
    weights: Array,
    count: int,
    rng: np.random.Generator,
    warnings: list[str],
) -> Draws | None:
    """Bootstrap refits, or None and a warning where no interval would be honest."""
    runs = len(data.runs)
    if count == 0:
        return None
    if runs < MIN_RUNS:
        warnings.append(f"no intervals: {runs} runs are too few to resample (at least {MIN_RUNS} are needed)")
        return None
    if data.independent:
        warnings.append("the table names no runs: every row was taken as an independent run")
    scheme = scheme_for(problem)
    draws = resample(problem, found.theta, data.y, weights, data.run, count=count, rng=rng, scheme=scheme)
    if draws.lost > 0.1 * count:
        warnings.append(f"no intervals: {draws.lost} of {count} resamples could not be fitted")
        return None
    return draws


def _estimates(law: Law, theta: Array, draws: Array | None, confidence: float, widen: float) -> dict[str, Estimate]:
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


def _r2(law: Law, data: Data, theta: Array) -> dict[str, float]:
    f = law.values(theta[None], data.x)[0]
    out = {}
    for o, name in enumerate(law.outputs):
        total = float(np.sum((data.y[o] - data.y[o].mean()) ** 2))
        out[name] = 1 - float(np.sum((data.y[o] - f[o]) ** 2)) / total if total > 0 else float("nan")
    return out


def _diagnostics(
    problem: Problem,
    adapted: Adapted,
    data: Data,
    found: Found,
    looks: Shape,
    objective: Objective,
    draws: Draws | None,
    weights: Array,
) -> dict[str, Any]:
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
        "bootstrap": None if draws is None else {"scheme": draws.scheme, "count": len(draws.theta), "lost": draws.lost},
    }
    if "rank" in data.columns and "trainable_params" in data.x:
        ratio = data.x["trainable_params"] / data.columns["rank"]
        if np.isfinite(ratio).all() and float(np.ptp(ratio)) <= 1e-9 * float(ratio.max()):
            out["params_per_rank"] = float(ratio[0])
    if not objective.quadratic:
        out["delta"] = objective.delta
        out["delta_sensitivity"] = _delta_sensitivity(problem, found, data, weights)
    return out


def _delta_sensitivity(problem: Problem, found: Found, data: Data, weights: Array) -> dict[str, dict[str, float]]:
    """Parameters refitted with a delta ten times smaller and ten times larger (Besiroglu et al. 2024)."""
    out = {}
    for factor in (0.1, 10.0):
        delta = problem.objective.delta * factor
        other = Problem(problem.law, problem.x, Objective(problem.objective.name, delta))
        refit = minimise(other, found.theta[None], data.y.reshape(1, -1), weights[None])
        out[f"{delta:g}"] = dict(zip(problem.law.names, refit.theta[0].tolist(), strict=True))
    return out

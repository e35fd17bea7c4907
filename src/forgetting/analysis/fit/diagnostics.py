"""Diagnostics and warnings of a fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from forgetting.analysis.fit.bootstrap import Draws
from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.objective import Objective
from forgetting.analysis.fit.search import FEW, Found
from forgetting.analysis.fit.shape import Shape
from forgetting.analysis.fit.solver import Problem, minimise
from forgetting.analysis.fit.validate import aicc
from forgetting.analysis.laws.base import Adapted, Array, Law, is_constant
from forgetting.errors import ForgettingError

TRIED = 32
"""Number of starts tried to find a row where the law has no finite value."""
UNSEEN = 1e6
"""Ratio of the sizes of two outputs above which the fit is refused, because it would ignore the smaller one."""
NO_SHARE = 1e-12
"""An R2 that differs from 0 by less than this is rounding error, and is reported as 0."""


def fit_warnings(problem: Problem, found: Found, looks: Shape, starts: int) -> list[str]:
    """Warnings about convergence, starts, bounds, flat directions and condition."""
    out = []
    if not found.converged:
        out.append(f"the fit did not converge: the best point found is not a minimum (slope {found.slope:.1e})")
    if starts and found.share < FEW:
        n = max(1, round(found.share * found.starts))
        out.append(f"only {n} of {found.starts} starts reached the best fit; a better one may exist")
    out += [
        f"'{name}' stopped at its bound {value:.6g}: "
        + (f"the data favour a {looks.asks[name]} value" if name in looks.asks else "it is not identified")
        for name, value in looks.at_bounds.items()
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
        out.append(
            f"parameters are nearly interchangeable (condition {looks.condition:.1e}): trust predictions, not these"
        )
    return out


def r_squared(law: Law, data: Data, theta: Array) -> dict[str, float]:
    """R2 by output (`r2_of_rows`) of the fitted rows; NaN without more values than parameters."""
    # any law fits as many values as it has parameters, so R2 would say nothing
    if data.y.size <= sum(p.gauge is None for p in law.parameters):
        return dict.fromkeys(law.outputs, float("nan"))
    return r2_of_rows(law, data, theta)


def r2_of_rows(law: Law, data: Data, theta: Array) -> dict[str, float]:
    """1 - SS_res / SS_tot by output of any rows, fitted or not, with equal weight per row."""
    f = law.values(theta[None], data.x)[0]
    shares = {name: explained(data.y[o], f[o]) for o, name in enumerate(law.outputs)}
    return {name: 0.0 if abs(share) < NO_SHARE else share for name, share in shares.items()}


def explained(measured: Array, fitted: Array) -> float:
    """1 - SS_res / SS_tot of [n] values; NaN if the measured values are all equal up to rounding."""
    if is_constant(measured):
        return float("nan")
    return 1 - float(np.sum((measured - fitted) ** 2)) / float(np.sum((measured - measured.mean()) ** 2))


def refuse_unseen(law: Law, data: Data, weights: Array, label: str, objective: Objective) -> None:
    """Refuse an output so much smaller than another that its errors do not change the summed objective.

    Raises:
        ForgettingError: there is such an output; the message names both, with their largest values.
    """
    size = np.sqrt(np.max(weights * data.y**2, axis=1))
    if objective.log or not size.all() or size.max() <= UNSEEN * size.min():
        return
    small, large = int(np.argmin(size)), int(np.argmax(size))
    named = [f"{law.outputs[o]} (up to {np.max(np.abs(data.y[o])):.3g})" for o in (small, large)]
    raise ForgettingError(
        f"'{label}': {named[0]} is over {UNSEEN:,.0f} times smaller than {named[1]}, and a fit of both sums their "
        "squared errors, so it would ignore the smaller; give both in the same unit, or weight them with --weights se "
        "(weights='se')"
    )


def worse_than_a_constant(r2: Mapping[str, float]) -> list[str]:
    """A warning for each output that its own mean fits better than the law does."""
    return [
        f"{name}: the law fits worse than a constant (R2 {value:.3g}); it may be the wrong law, or lack an offset"
        for name, value in r2.items()
        if value < 0
    ]


def rmse(law: Law, data: Data, theta: Array) -> dict[str, float]:
    """Root mean square residual by output, in the output's unit, with equal weight for every row."""
    f = law.values(theta[None], data.x)[0]
    return dict(zip(law.outputs, np.sqrt(np.mean((data.y - f) ** 2, axis=1)).tolist(), strict=True))


def undefined_row(law: Law, data: Data) -> str:
    """The first row where the law is not finite for any of TRIED starts, such as `log(x)` at 0; empty if none."""
    with np.errstate(all="ignore"):
        finite = np.isfinite(law.values(law.starts(TRIED, np.random.default_rng(0)), data.x)).any(axis=0).all(axis=0)
    if finite.all():
        return ""
    i = int(np.flatnonzero(~finite)[0])
    place = i if data.row is None else int(data.row[i])
    return f"row {place + 1} ({', '.join(f'{name} = {values[i]:.6g}' for name, values in data.x.items())})"


def diagnostics(
    problem: Problem,
    adapted: Adapted,
    data: Data,
    found: Found,
    looks: Shape,
    draws: Draws | None,
    weights: Array,
    validation: Mapping[str, Any],
) -> dict[str, Any]:
    """All diagnostics of a fit as plain data.

    Args:
        problem: law in fitted coordinates, variables, objective.
        adapted: the fitted coordinates.
        data: the table.
        found: the best point.
        looks: the objective around it.
        draws: bootstrap refits, if any.
        weights: [O, n] weights.
        validation: results of `validate` or `summed`.
    """
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
        "aicc": aicc(problem, found.cost, data.y, weights),
        **validation,
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
    """Parameters refitted with a tenth and ten times the delta (Besiroglu et al. 2024, arXiv:2404.10102)."""
    out = {}
    for factor in (0.1, 10.0):
        delta = problem.objective.delta * factor
        other = Problem(problem.law, problem.x, Objective(problem.objective.name, delta))
        refit = minimise(other, found.theta[None], data.y.reshape(1, -1), weights.reshape(1, -1))
        out[f"{delta:g}"] = dict(zip(problem.law.names, refit.theta[0].tolist(), strict=True))
    return out

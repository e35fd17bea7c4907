"""Eq. 4 with errors in both losses.

Least squares of L_f on L_ft treats L_ft as exact, and noise in it flattens the slope. With standard errors of both
losses, the fit minimises sum (L_f + c L_ft - s)^2 / (se_f^2 + c^2 se_ft^2), as in York et al. (2004),
doi:10.1119/1.1632486, for uncorrelated errors. Intervals come from whole runs drawn with replacement.
"""

from __future__ import annotations

import numpy as np

from forgetting.analysis.fit.bootstrap import interval, widen_by
from forgetting.analysis.fit.data import KEPT_ROWS, Data
from forgetting.analysis.fit.diagnostics import r_squared, rmse, worse_than_a_constant
from forgetting.analysis.fit.estimate import Estimate
from forgetting.analysis.fit.intervals import can_draw
from forgetting.analysis.fit.result import Fit
from forgetting.analysis.laws import LAWS
from forgetting.analysis.laws.base import Array, is_constant
from forgetting.errors import UsageError

OBJECTIVE = "errors-in-both"
GRID = 721
"""Angles of the line tried at first, from -90 to 90 degrees."""
FINE = 9
"""Angles tried around the best in each later round."""
CHUNK = 1_000_000
"""Most numbers in one array, 8 MB."""


def fit_line(data: Data, label: str, *, seed: int, bootstrap: int, confidence: float) -> Fit:
    """Fit Eq. 4 with errors in both losses.

    Raises:
        UsageError: a standard error is missing or not positive, or all fine-tuning losses are equal.
    """
    x_se = data.columns.get("finetune_loss_se")
    if data.se is None or x_se is None or not (np.isfinite(x_se) & (x_se > 0)).all():
        raise UsageError(
            f"{OBJECTIVE} needs positive finetune_loss_se and forgetting_loss_se in every row of '{label}'; for a loss "
            "read from another column (--map finetune_loss=COLUMN), that is COLUMN_se"
        )
    law = LAWS["linear"]
    x, y, runs = data.x["finetune_loss"], data.y[0], len(data.runs)
    if is_constant(x):
        raise UsageError(
            f"'{label}': finetune_loss is {x[0]:g} in every row, so no line can be fitted; give rows with other values"
        )
    theta, cost = fit_both(x, y, x_se, data.se[0], np.ones((1, data.n)))
    warnings = [*data.warnings, *law.hints(data.x, data.y)]
    draws, widen = np.empty((0, 2)), 1.0
    if can_draw(data, bootstrap, data.n - len(law.names), warnings):
        counts = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=bootstrap)
        draws, _ = fit_both(x, y, x_se, data.se[0], counts[:, data.run].astype(float))
        widen = widen_by("cases", runs, runs - 1, confidence)
    estimates = {}
    for k, name in enumerate(law.names):
        low, high = interval(theta[0, k], draws[:, k], confidence, widen) if len(draws) else (np.nan, np.nan)
        estimates[name] = Estimate(float(theta[0, k]), float(low), float(high))
    r2 = r_squared(law, data, theta[0])
    return Fit(
        law="linear",
        label=label,
        parameters=estimates,
        objective=OBJECTIVE,
        objective_value=float(cost[0]),
        r2=r2,
        n_points=data.n,
        n_runs=data.n_runs,
        measured_range={"finetune_loss": (float(x.min()), float(x.max()))},
        confidence=confidence,
        warnings=[*warnings, *worse_than_a_constant(r2)],
        diagnostics={
            "bootstrap": {"scheme": "cases", "count": len(draws), "lost": 0} if len(draws) else None,
            "rmse": rmse(law, data, theta[0]),
            **({"iid": True} if data.iid else {}),
            **data.grouping,
        },
        draws=draws.tolist(),
        widen=widen,
        data=data.sample(KEPT_ROWS),
    )


def fit_both(x: Array, y: Array, x_se: Array, y_se: Array, rows: Array) -> tuple[Array, Array]:
    """Slope c_fft, intercept s_fft and objective for many resamples of the same rows.

    Args:
        x, y, x_se, y_se: [n] losses and their standard errors.
        rows: [S, n] how often each row occurs in each resample.

    Returns:
        [S, 2] slope and intercept, and [S] the objective, a sum of squares in units of standard errors.
    """
    x_mean, y_mean = float(np.mean(x)), float(np.mean(y))
    # search over the line's angle, which treats both axes alike, with both losses scaled to equal spread
    x_unit, y_unit = float(np.std(x)), float(np.std(y)) if not is_constant(y) else 1.0
    u, v = (x - x_mean) / x_unit, (y - y_mean) / y_unit
    u_se, v_se = x_se / x_unit, y_se / y_unit
    grid = np.linspace(-np.pi / 2, np.pi / 2, GRID)
    best = np.argmin(_coarse_cost(grid, u, v, u_se, v_se, rows), axis=1)
    step = max(1, CHUNK // (FINE * x.size))
    parts = [
        _refined(grid[best[i : i + step]], np.pi / (GRID - 1), u, v, u_se, v_se, rows[i : i + step])
        for i in range(0, len(rows), step)
    ]
    angle, cost, level = (np.concatenate(part) for part in zip(*parts, strict=True))
    slope = 0.0 - np.tan(angle) * y_unit / x_unit  # not -0
    intercept = y_mean + level / np.cos(angle) * y_unit + slope * x_mean
    return np.stack([slope, intercept], axis=1), cost


def _coarse_cost(angle: Array, u: Array, v: Array, u_se: Array, v_se: Array, rows: Array) -> Array:
    """[S, G] objective at [G] angles, up to rounding, from sums that need no array of resamples times rows."""
    mass, first, second = np.zeros((3, len(rows), len(angle)))
    cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
    step = max(1, CHUNK // len(angle))
    for i in range(0, u.size, step):
        at = slice(i, i + step)
        weight = 1 / ((cosine * v_se[at]) ** 2 + (sine * u_se[at]) ** 2)
        height = cosine * v[at] - sine * u[at]
        mass += rows[:, at] @ weight.T
        first += rows[:, at] @ (weight * height).T
        second += rows[:, at] @ (weight * height**2).T
    return np.asarray(second - first**2 / mass)


def _refined(
    angle: Array, width: float, u: Array, v: Array, u_se: Array, v_se: Array, rows: Array
) -> tuple[Array, Array, Array]:
    """[S] angles with the lowest objective within `width` of the given ones, the objective, and the line's distance."""
    for _ in range(11):
        tried = angle[:, None] + width * np.linspace(-1, 1, FINE)
        best = np.argmin(_cost(tried, u, v, u_se, v_se, rows)[0], axis=1)
        angle = tried[np.arange(angle.size), best]
        width = 2 * width / (FINE - 1)
    cost, level = _cost(angle[:, None], u, v, u_se, v_se, rows)
    return angle, cost[:, 0], level[:, 0]


def _cost(angle: Array, u: Array, v: Array, u_se: Array, v_se: Array, rows: Array) -> tuple[Array, Array]:
    """[S, G] objective and signed distance of the line from the centre, at [S, G] angles."""
    cosine, sine = np.cos(angle)[:, :, None], np.sin(angle)[:, :, None]
    weight = rows[:, None, :] / ((cosine * v_se) ** 2 + (sine * u_se) ** 2)
    height = cosine * v - sine * u
    middle = (weight * height).sum(axis=2) / weight.sum(axis=2)
    return (weight * (height - middle[:, :, None]) ** 2).sum(axis=2), middle

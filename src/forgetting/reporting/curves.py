"""The fitted laws as Plotly traces: lines and curves, solid inside a fit's measured range and dotted outside."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forgetting.reporting.series import Panel
from forgetting.reporting.words import finite

if TYPE_CHECKING:
    from forgetting.analysis.fit import Fit

Floats = NDArray[np.float64]
FITTED = "fit"  # the series that a curve of all runs belongs to: none


def fitted_line(panel: Panel) -> list[dict[str, Any]]:
    """Eq. 4 with its band over the measured range, dotted a little beyond."""
    fit, x = panel.linear, panel.points["finetune_loss"].dropna()
    if fit is None or x.empty:
        return []
    low, high = float(x.min()), float(x.max())
    margin = 0.06 * (high - low or 1.0)
    at = _spread(np.array([low - margin, low, high, high + margin]), fit, "finetune_loss")
    made = fit.predict("forgetting_loss", finetune_loss=at)
    traces = _curve(at, made.value, made.extrapolated, "var(--line-fit)", 2.2)
    if np.isfinite([made.low, made.high]).all():
        band = {
            "type": "scatter",
            "mode": "none",
            "x": plain([*at, *at[::-1]]),
            "y": plain([*made.low, *made.high[::-1]]),
            "fill": "toself",
            "fillcolor": "var(--band)",
            "hoverinfo": "skip",
            "meta": {"series": FITTED, "role": "band"},
        }
        traces.insert(0, band)
    return traces


def fitted_steps(panel: Panel, column: str) -> list[dict[str, Any]]:
    """The joint law along steps, one curve a series."""
    if panel.joint is None:
        return []
    traces = []
    low, high = float(panel.points["step"].min()), float(panel.points["step"].max())
    at = _spread(np.array([max(0.75 * low, 1.0), low, high, 1.1 * high]), panel.joint, "step")
    for series in panel.series:
        size = float(panel.of(series)["trainable_params"].median())
        if finite(size) and size > 0:
            made = panel.joint.predict(column, trainable_params=size, step=at)
            traces += _curve(at, made.value, made.extrapolated, f"var(--{series.key})", 1.4, series.key)
    return traces


def fitted_sizes(panel: Panel, step: float) -> list[dict[str, Any]]:
    """The joint law along trainable parameters at one step, less the floor."""
    sizes, floor = panel.points["trainable_params"], float(panel.points["forgetting_floor"].median())
    sizes = sizes[sizes > 0]
    if panel.joint is None or not finite(floor) or sizes.nunique() < 2:
        return []
    low, high = float(sizes.min()), float(sizes.max())
    at = _spread(np.array([low / 1.3, low, high, high * 1.3]), panel.joint, "trainable_params")
    made = panel.joint.predict("forgetting_loss", trainable_params=at, step=step)
    return _curve(at, made.value - floor, made.extrapolated, "var(--line-fit)", 1.6)


def _spread(bounds: Floats, fit: Fit, variable: str) -> Floats:
    """Points to draw a curve at: dense between the bounds, with both ends of the fit's measured range among them."""
    ends = [end for end in fit.measured_range.get(variable, ()) if bounds[0] < end < bounds[-1]]
    space = np.geomspace if bounds[0] > 0 else np.linspace
    return np.unique(np.concatenate([space(bounds[0], bounds[-1], 60), bounds, ends]))


def _curve(
    at: Floats, value: Floats, outside: NDArray[np.bool_], colour: str, width: float, key: str = FITTED
) -> list[dict[str, Any]]:
    """A fitted curve: solid inside the measured range, dotted outside; the two meet."""
    padded = np.pad(outside, 1, mode="edge")
    beside = padded[:-2] | padded[2:] | outside
    traces = []
    for keep, dash in ((~outside, "solid"), (beside, "dot")):
        if keep.any() and (dash == "solid" or outside.any()):
            trace = {
                "type": "scatter",
                "mode": "lines",
                "x": plain(at),
                "y": plain(np.where(keep, value, np.nan)),
                "line": {"color": colour, "width": width, "dash": dash},
                "hoverinfo": "skip",
                "meta": {"series": key, "role": "curve"},
            }
            traces.append(trace)
    return traces


def plain(values: Iterable[Any]) -> list[float | None]:
    """Floats for JSON: nine significant digits, None for what is not finite."""
    return [float(f"{float(v):.9g}") if v is not None and math.isfinite(float(v)) else None for v in values]

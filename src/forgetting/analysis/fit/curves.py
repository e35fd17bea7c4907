"""A fitted law as Plotly traces: curves and bands, solid inside the measured range and dotted outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetting.analysis.fit.estimate import Prediction
from forgetting.analysis.laws.base import Array
from forgetting.display.charts import floats

FITTED = "fit"  # the series that a curve of all runs belongs to: none


class Predicts(Protocol):
    """What a curve needs of a fit."""

    @property
    def measured_range(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest fitted value of each variable."""

    def predict(self, output: str, **variables: ArrayLike) -> Prediction:
        """One output at values of the law's variables."""


def law_curve(
    fit: Predicts,
    output: str,
    along: str,
    bounds: Sequence[float],
    *,
    at: dict[str, float] | None = None,
    colour: str = "var(--line-fit)",
    width: float = 2.2,
    key: str = FITTED,
    less: float = 0.0,
    band: bool = False,
) -> list[dict[str, Any]]:
    """One output along one variable.

    Args:
        fit: the law.
        output: of the law.
        along: the variable of the x axis.
        bounds: increasing values of it; the curve goes from the first to the last and has a point at each.
        at: values of the law's other variables.
        colour, width: of the curve.
        key: the series that it belongs to.
        less: subtracted from the output, such as the floor.
        band: whether to draw the bands of the law's mean and of one new run, too, where they are known.
    """
    x = _spread(np.asarray(bounds, dtype=float), fit, along)
    made = fit.predict(output, **(at or {}), **{along: x})
    traces = _pieces(x, made.value - less, made.extrapolated, colour, width, key)
    if band:
        ends = ((made.run_low, made.run_high, "run"), (made.low, made.high, "band"))
        traces = [area for low, high, role in ends for area in _area(x, low - less, high - less, key, role)] + traces
    return traces


def bands_said(traces: Sequence[Mapping[str, Any]], level: str) -> str:
    """What the bands among these traces are, for a caption; empty where there are none.

    Args:
        traces: of a chart.
        level: the confidence in words, such as `95 %`.
    """
    roles = {trace["meta"]["role"] for trace in traces}
    mean = f"the {level} band of the law’s mean"
    if {"band", "run"} <= roles:
        return f"darker, {mean}; lighter, the {level} band of one new run"
    return mean if "band" in roles else f"the {level} band of one new run" if "run" in roles else ""


def _area(x: Array, low: Array, high: Array, key: str, role: str) -> list[dict[str, Any]]:
    """The area between two curves; none where an end is not known."""
    if not np.isfinite([low, high]).all():
        return []
    return [
        {
            "type": "scatter",
            "mode": "none",
            "x": floats([*x, *x[::-1]]),
            "y": floats([*low, *high[::-1]]),
            "fill": "toself",
            "fillcolor": "var(--band)",
            "hoverinfo": "skip",
            "meta": {"series": key, "role": role},
        }
    ]


def _spread(bounds: Array, fit: Predicts, variable: str) -> Array:
    """Points to draw a curve at: dense between the bounds, with both ends of the fit's measured range among them."""
    ends = [end for end in fit.measured_range.get(variable, ()) if bounds[0] < end < bounds[-1]]
    space = np.geomspace if bounds[0] > 0 else np.linspace
    return np.unique(np.concatenate([space(bounds[0], bounds[-1], 60), bounds, ends]))


def _pieces(
    at: Array, value: Array, outside: NDArray[np.bool_], colour: str, width: float, key: str
) -> list[dict[str, Any]]:
    """A curve: solid inside the measured range, dotted outside; the two meet."""
    padded = np.pad(outside, 1, mode="edge")
    beside = padded[:-2] | padded[2:] | outside
    traces = []
    for keep, dash in ((~outside, "solid"), (beside, "dot")):
        if keep.any() and (dash == "solid" or outside.any()):
            line = {"color": colour, "width": width, "dash": dash}
            traces.append(curve_trace(at, np.where(keep, value, np.nan), line, key, "curve"))
    return traces


def curve_trace(x: Array, y: Array, line: Mapping[str, Any], key: str, role: str) -> dict[str, Any]:
    """A curve without markers.

    Args:
        x, y: [n] its points; a gap where y is NaN.
        line: its colour, width and dash.
        key: the series that it belongs to.
        role: what it is, for captions and the page's script.
    """
    return {
        "type": "scatter",
        "mode": "lines",
        "x": floats(x),
        "y": floats(y),
        "line": dict(line),
        "hoverinfo": "skip",
        "meta": {"series": key, "role": role},
    }

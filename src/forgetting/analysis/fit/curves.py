"""A fitted law as Plotly traces: curves, solid inside the measured range and dotted outside, and bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetting.analysis.fit.estimate import Prediction
from forgetting.analysis.laws.base import Array
from forgetting.display.charts import floats

FITTED = "fit"  # series key of a curve that belongs to no single series


class Predicts(Protocol):
    """The part of a fit that a curve needs."""

    @property
    def measured_range(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest fitted value of each variable."""

    def predict(self, output: str, **variables: ArrayLike) -> Prediction:
        """Predict one output at values of the law's variables."""


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
    """One output of a law against one variable, as traces.

    Args:
        fit: the fitted law.
        output: the output to draw.
        along: the variable on the x axis.
        bounds: increasing values of that variable; the curve goes from the first to the last, with a point at each.
        at: values of the law's other variables.
        colour, width: style of the curve.
        key: key of the curve's series.
        less: value to subtract from the output, such as the floor.
        band: whether to draw the bands of the mean and of one new run, if they are known.
    """
    x = _spread(np.asarray(bounds, dtype=float), fit, along)
    made = fit.predict(output, **(at or {}), **{along: x})
    traces = _pieces(x, made.value - less, made.extrapolated, colour, width, key)
    if band:
        ends = ((made.run_low, made.run_high, "run"), (made.low, made.high, "band"))
        traces = [area for low, high, role in ends for area in _area(x, low - less, high - less, key, role)] + traces
    return traces


def bands_said(traces: Sequence[Mapping[str, Any]], level: str) -> str:
    """A caption that explains the bands among these traces; empty if there are none.

    Args:
        traces: traces of a chart.
        level: the confidence as text, such as `95 %`.
    """
    roles = {trace["meta"]["role"] for trace in traces}
    mean = f"the {level} band of the law’s mean"
    if {"band", "run"} <= roles:
        return f"darker, {mean}; lighter, the {level} band of one new run"
    return mean if "band" in roles else f"the {level} band of one new run" if "run" in roles else ""


def _area(x: Array, low: Array, high: Array, key: str, role: str) -> list[dict[str, Any]]:
    """The area between two curves; no trace if any point is unknown."""
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
    """x values for a curve: dense between the bounds, including the ends of the measured range."""
    ends = [end for end in fit.measured_range.get(variable, ()) if bounds[0] < end < bounds[-1]]
    space = np.geomspace if bounds[0] > 0 else np.linspace
    return np.unique(np.concatenate([space(bounds[0], bounds[-1], 60), bounds, ends]))


def _pieces(
    at: Array, value: Array, outside: NDArray[np.bool_], colour: str, width: float, key: str
) -> list[dict[str, Any]]:
    """A curve in two connected traces: solid inside the measured range, dotted outside."""
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
        x, y: [n] points; NaN in y makes a gap.
        line: colour, width and dash.
        key: key of the curve's series.
        role: kind of trace, for captions and the page's script.
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

"""The chart of a fit: the law's curves and the fitted rows."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from forgetting.analysis.fit.curves import Predicts, bands_said, law_curve
from forgetting.analysis.fit.data import Data
from forgetting.analysis.laws import Law
from forgetting.display.charts import RANKS_LIGHT, Chart, blend, floats, marker, note, plain_layout, rank_place
from forgetting.display.numbers import count, level, number
from forgetting.measuring.quantities import AXES

CURVES = 8
"""Most curves of a law of several variables; if more combinations were measured, evenly spaced ones are chosen."""


class Charted(Predicts, Protocol):
    """The part of a fit that the chart needs."""

    @property
    def law_object(self) -> Law:
        """The law."""

    @property
    def label(self) -> str:
        """Name of the fit, such as the data set's."""

    @property
    def confidence(self) -> float:
        """Nominal coverage of the bands."""

    @property
    def r2(self) -> dict[str, float]:
        """R2 by output."""

    @property
    def data(self) -> Data | None:
        """The fitted rows, or a sample of them."""

    @property
    def diagnostics(self) -> dict[str, Any]:
        """Diagnostics; `params_per_rank` is used if present."""


def fit_chart(fit: Charted, output: str) -> tuple[Chart, dict[str, str], dict[str, str]]:
    """The chart of one output, and the names and colours of its series by key.

    There is one series for each combination of values of the law's variables that are not on the x axis.
    """
    law = fit.law_object
    along = "step" if "step" in law.variable_names else law.variable_names[-1]
    bounds = _bounds(fit, along)
    data: list[dict[str, Any]] = []
    names, colours = {}, {}
    groups = _groups(fit, along)
    for i, at in enumerate(groups):
        key, colour = ("fit", "var(--line-fit)")
        if at:
            key, colour = f"s{i}", blend(RANKS_LIGHT, rank_place(i, len(groups)))
            names[key] = _name(at, fit.diagnostics)
        colours[key] = colour
        data += law_curve(fit, output, along, bounds, at=at, colour=colour, key=key, band=not at)
        data += _points(fit.data, law, output, along, at, colour, key)
    layout = plain_layout(AXES.get(along, html.escape(along)), AXES.get(output, html.escape(output)))
    if output in fit.r2:
        layout["annotations"] = [note(f"R² = {number(fit.r2[output])}")]
    title = html.escape(f"{law.title}: {fit.label}" if fit.label else law.title)
    spec = {"data": data, "layout": layout}
    bands = bands_said(data, level(fit.confidence))
    caption = f"Dotted outside the measured range. {bands and f'Bands: {bands}.'}".strip()
    if bands:
        layout["annotations"] = [*layout.get("annotations", []), {**note(bands), "y": 0.03, "yanchor": "bottom"}]
    return Chart("fit", title, caption, title, spec, wide=True), names, colours


def _bounds(fit: Charted, along: str) -> list[float]:
    """The measured range and a margin on both sides, as far as the law allows."""
    low, high = fit.measured_range[along]
    variable = next(v for v in fit.law_object.variables if v.name == along)
    margin = 0.06 * (high - low or abs(high) or 1.0)
    first = low / 1.1 if low > 0 and high > 3 * low else low - margin
    return [first if variable.allows(np.array([first])).all() else low, low, high, high + margin]


def _groups(fit: Charted, along: str) -> list[dict[str, float]]:
    """Values of the other variables for each curve: measured combinations, or values across the measured range."""
    others = [name for name in fit.law_object.variable_names if name != along]
    if not others:
        return [{}]
    if fit.data is not None:
        found = np.unique(np.stack([fit.data.x[name] for name in others], axis=1), axis=0)
        chosen = found[np.unique(np.linspace(0, len(found) - 1, CURVES).round().astype(int))]
        return [dict(zip(others, map(float, row), strict=True)) for row in chosen]
    first, *rest = others
    middle = {name: float(np.mean(fit.measured_range[name])) for name in rest}
    low, high = fit.measured_range[first]
    space = np.geomspace if low > 0 else np.linspace
    return [{first: float(value), **middle} for value in space(low, high, 6)]


def _name(at: Mapping[str, float], known: Mapping[str, Any]) -> str:
    """A series' name: `rank 8`, `P = 20.0 M`, or all variables with their values."""
    size, each = at.get("trainable_params"), known.get("params_per_rank")
    if size is not None and len(at) == 1:
        rank = size / float(each) if each else 0.0
        return f"rank {rank:.0f}" if each and abs(rank - round(rank)) < 1e-6 else f"P = {count(size)}"
    return html.escape(", ".join(f"{name} = {number(value)}" for name, value in at.items()))


def _points(
    data: Data | None, law: Law, output: str, along: str, at: Mapping[str, float], colour: str, key: str
) -> list[dict[str, Any]]:
    if data is None:
        return []
    keep = np.ones(data.n, dtype=bool)
    for name, value in at.items():
        keep &= data.x[name] == value
    y = data.y[law.outputs.index(output)]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": floats(data.x[along][keep]),
            "y": floats(y[keep]),
            "marker": marker(colour),
            "meta": {"series": key, "role": "points"},
        }
    ]

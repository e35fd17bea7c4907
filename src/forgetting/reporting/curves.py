"""Curves of the laws fitted to a data set, as Plotly traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from forgetting.analysis.fit.curves import FITTED, curve_trace, law_curve
from forgetting.analysis.fit.diagnostics import explained
from forgetting.analysis.fit.misfit import BEND, LEVEL, Misfit
from forgetting.display.numbers import finite
from forgetting.reporting.series import Panel, Series


def fitted_line(panel: Panel) -> list[dict[str, Any]]:
    """The line of Eq. 4 with its bands, solid over the measured range and dotted a little beyond."""
    fit, x = panel.linear, panel.points["finetune_loss"].dropna()
    if fit is None or x.empty:
        return []
    low, high = float(x.min()), float(x.max())
    margin = 0.06 * (high - low or 1.0)
    return law_curve(fit, "forgetting_loss", "finetune_loss", [low - margin, low, high, high + margin], band=True)


@dataclass(frozen=True)
class Bend:
    """A parabola fitted where the points deviate from the line of Eq. 4.

    Attributes:
        test: the test of the deviation, with its size and standard error.
        r2: the parabola's R², on the same rows as the line's; None if the panel does not have all of these rows.
        trace: the parabola over the measured range.
    """

    test: Misfit
    r2: float | None
    trace: dict[str, Any]


def bent_line(panel: Panel) -> Bend | None:
    """The parabola through the points of Eq. 4; None if the test finds no deviation from the line."""
    fit = panel.linear
    if fit is None:
        return None
    tests = [Misfit(**test) for test in fit.diagnostics.get("misfit", [])]
    bends = [test for test in tests if test.kind == BEND and test.p_holm < LEVEL]
    rival = next((r for r in fit.rivals if r.law.outputs == ("forgetting_loss",)), None)
    if not bends or rival is None:
        return None
    x = np.linspace(*fit.measured_range["finetune_loss"], 60)
    curve = rival.law.values(rival.theta[None], {"finetune_loss": x})[0, 0]
    points = panel.points[["finetune_loss", "forgetting_loss"]].dropna()
    r2 = None
    if len(points) == fit.n_points:
        loss, made = (points[name].to_numpy(float) for name in ("forgetting_loss", "finetune_loss"))
        r2 = explained(loss, rival.law.values(rival.theta[None], {"finetune_loss": made})[0, 0])
    line = {"color": "var(--ink)", "width": 1.2, "dash": "dash"}
    return Bend(bends[0], r2, curve_trace(x, curve, line, FITTED, "bend"))


def fitted_steps(panel: Panel, column: str, less: float = 0.0) -> list[dict[str, Any]]:
    """The joint law against steps, one curve per series of plain runs, with bands on the series that `banded` returns.

    The law says nothing about mitigated runs: at their P it would repeat the curve of the plain ones.
    """
    if panel.joint is None:
        return []
    traces = []
    low, high = float(panel.points["step"].min()), float(panel.points["step"].max())
    bounds = [max(0.75 * low, 1.0), low, high, 1.1 * high]
    shown = banded(panel)
    for series in panel.series:
        mine = panel.of(series)
        size = float(mine["trainable_params"].median())
        if finite(size) and size > 0 and not (mine["mitigation"] != "").any():
            look: dict[str, Any] = {"colour": f"var(--{series.key})", "width": 1.4, "key": series.key}
            look |= {"less": less}
            look["band"] = shown is not None and series.key == shown.key
            traces += law_curve(panel.joint, column, "step", bounds, at={"trainable_params": size}, **look)
    return traces


def banded(panel: Panel) -> Series | None:
    """The series whose curve against steps is drawn with bands: the middle rank only, since bands of all overlap."""
    ranked = [s for s in panel.series if s.symbol == "circle"]
    return ranked[len(ranked) // 2] if ranked else None


def fitted_sizes(panel: Panel, step: float) -> list[dict[str, Any]]:
    """The joint law minus the floor, against trainable parameters at one step, with its bands."""
    sizes, floor = panel.points["trainable_params"], float(panel.points["forgetting_floor"].median())
    sizes = sizes[sizes > 0]
    if panel.joint is None or not finite(floor) or sizes.nunique() < 2:
        return []
    low, high = float(sizes.min()), float(sizes.max())
    bounds = [low / 1.3, low, high, high * 1.3]
    at = {"step": step}
    return law_curve(
        panel.joint, "forgetting_loss", "trainable_params", bounds, at=at, width=1.6, less=floor, band=True
    )

"""A law over a mitigation's option in a report: parameters, fitted and measured values, where it stops paying."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forgetting.analysis.fit import Fit
from forgetting.analysis.fit.curves import bands_said, law_curve
from forgetting.analysis.plan.mitigated import plan_mitigated
from forgetting.display.charts import Chart, plain_layout
from forgetting.display.commands import exact
from forgetting.display.numbers import finite, level, number, several
from forgetting.errors import UsageError
from forgetting.measuring.quantities import AXES as AXES_TITLES
from forgetting.reporting.lawtable import ParameterRow, parameter_row
from forgetting.reporting.points import points_trace
from forgetting.reporting.series import Panel, Series
from forgetting.store.axes import AXES, Axis

OUTPUTS = ("forgetting", "finetune_loss")


@dataclass(frozen=True)
class Setting:
    """What was measured and fitted at one value of the option, as the text of table cells.

    Attributes:
        value: the option's value.
        measurements: number of measurements and runs.
        forgetting: mean forgetting at the last step, measured and fitted, in nats/token.
        errors: root mean square error of the law over all steps, for forgetting and the fine-tuning loss.
    """

    value: str
    measurements: str
    forgetting: tuple[str, str]
    errors: tuple[str, str]


@dataclass(frozen=True)
class MitigatedSection:
    """The section of one data set and one law.

    Attributes:
        axis: the option.
        formula: the law's formula.
        confidence: nominal coverage of the intervals.
        support: the measurements that the law is fitted to, in words.
        r2: R² of forgetting and of the fine-tuning loss.
        parameters: the law's parameters with their intervals.
        settings: measured and fitted values, one row per value of the option.
        step: the last step, whose forgetting is in `settings`.
        budget: the budget of the plan in `sentences`, in nats/token.
        sentences: what `plan` says for this budget, first where the mitigation stops paying; empty without a plan.
        words: the arguments of `forgetting plan` that print them.
        warnings: the fit's warnings.
    """

    axis: Axis
    formula: str
    confidence: str
    support: str
    r2: tuple[str, str]
    parameters: tuple[ParameterRow, ...]
    settings: tuple[Setting, ...]
    step: str
    budget: str
    sentences: tuple[str, ...]
    words: tuple[str, ...]
    warnings: tuple[str, ...]


def sections_of(panel: Panel) -> list[MitigatedSection]:
    """One section per law over an option of a mitigation; none if no such law was fitted."""
    made = []
    for name, fit in panel.along.items():
        axis = AXES[name]
        rows = rows_of(fit, axis, panel.measured)
        if rows.empty:
            continue
        budget, sentences = _plan(fit, axis)
        made.append(
            MitigatedSection(
                axis=axis,
                formula=str(fit.law_object.formula),
                confidence=level(fit.confidence),
                support=fit.support("measurement"),
                r2=(number(fit.r2["forgetting"]), number(fit.r2["finetune_loss"])),
                parameters=tuple(parameter_row(name, [fit]) for name in fit.parameters),
                settings=tuple(_settings(fit, axis, rows)),
                step=f"{rows['step'].max():.0f}",
                budget=f"{budget:g}",
                sentences=tuple(sentences),
                words=("--dataset", panel.name, "--budget", exact(budget), *_without_others(panel, axis)),
                warnings=tuple(fit.warnings),
            )
        )
    return made


def _without_others(panel: Panel, axis: Axis) -> list[str]:
    """Options of `plan` that leave out the other mitigations with a law."""
    return [word for name in panel.along if name != axis.name for word in (f"--{name}", "0")]


def rows_of(fit: Fit, axis: Axis, points: pd.DataFrame) -> pd.DataFrame:
    """The points of a law: plain runs and those with its mitigation alone, of one method, at steps that were fitted."""
    points = points[points[axis.column].notna() & (points["step"] >= fit.measured_range["step"][0])]
    mitigated = points.loc[points[axis.column] > 0, "label"]
    if mitigated.empty:
        return points.iloc[:0]
    points = points[points["label"] == mitigated.mode().iloc[0]]
    plain = points["mitigation"] == ""
    alone: pd.Series[bool] = axis.alone(points[~plain]).reindex(points.index, fill_value=False)
    kept: pd.DataFrame = points[plain | alone]
    return kept


def mitigated_charts(panel: Panel) -> list[Chart]:
    """For each law with points, a chart of forgetting at the last step against the option's value, with the law."""
    return [chart for name in panel.along if (chart := _chart(panel, AXES[name])) is not None]


def _chart(panel: Panel, axis: Axis) -> Chart | None:
    fit, option = panel.along[axis.name], axis.column
    rows = rows_of(fit, axis, panel.points)
    if rows.empty:
        return None
    step = float(rows["step"].max())
    last = rows[rows["step"] == step]
    ranked = [(s, size) for s in panel.series if (size := _size(panel, s, last)) is not None]
    data: list[dict[str, Any]] = []
    shown = ranked[len(ranked) // 2][0] if ranked else None
    bounds = [0.0, fit.measured_range[option][1]]
    for series, size in ranked:
        at = {"trainable_params": size, "step": step}
        look: dict[str, Any] = {"colour": f"var(--{series.key})", "width": 1.4, "key": series.key}
        data += law_curve(fit, "forgetting", option, bounds, at=at, band=series is shown, **look)
    for series, size in ranked:
        mine = last[last["trainable_params"] == size].sort_values([option, "run_id"])
        data.append(points_trace(mine, option, "forgetting", f"var(--{series.key})", "circle", series.key))
    caption = f"At step {step:.0f}, the last one. {panel.bars} Curves are the law, fitted to "
    caption += f"{fit.support('measurement')} (R² {number(fit.r2['forgetting'])})."
    if (bands := bands_said(data, level(fit.confidence))) and shown is not None:
        caption += f" Bands at {shown.label}: {bands}."
    alt = f"Forgetting at step {step:.0f} against {axis.what}; the numbers are in the table by {axis.value} below."
    layout = plain_layout(axis.axis_title, AXES_TITLES["forgetting"])
    layout["yaxis"]["rangemode"] = "tozero"
    return Chart(axis.name, f"Forgetting against {axis.what}", caption, alt, {"data": data, "layout": layout})


def _size(panel: Panel, series: Series, rows: pd.DataFrame) -> float | None:
    """Trainable parameters of a plain ranked series that has rows of the law; None for others."""
    size = float(panel.of(series)["trainable_params"].median())
    plain = series.symbol == "circle" and " + " not in series.label
    return size if plain and bool((rows["trainable_params"] == size).any()) else None


def _settings(fit: Fit, axis: Axis, rows: pd.DataFrame) -> list[Setting]:
    """One row per value: forgetting at the last step, measured and fitted, and both errors over all steps."""
    made = _fitted(fit, axis, rows)
    found = []
    last = (rows["step"] == rows["step"].max()).to_numpy()
    for value in sorted(rows[axis.column].unique()):
        here = (rows[axis.column] == value).to_numpy()
        measured = rows["forgetting"].to_numpy(float)
        at_end = here & last
        ends = (measured[at_end].mean(), made[0][at_end].mean()) if at_end.any() else (np.nan, np.nan)
        errors = [
            float(np.sqrt(np.mean((rows[name].to_numpy(float)[here] - made[i][here]) ** 2)))
            for i, name in enumerate(OUTPUTS)
        ]
        found.append(
            Setting(
                f"{value:g}",
                f"{int(here.sum())} of {several(rows.loc[here, 'run_id'].nunique(), 'run')}",
                (number(float(ends[0])), number(float(ends[1]))),
                (number(errors[0]), number(errors[1])),
            )
        )
    return found


def _fitted(fit: Fit, axis: Axis, rows: pd.DataFrame) -> list[NDArray[np.float64]]:
    """The law's values at each row, in the order of OUTPUTS."""
    law, theta, _ = fit.model()
    x = {name: rows[name].to_numpy(float) for name in ("trainable_params", "step", axis.column)}
    values = law.values(theta[None], x)[0]
    return [values[fit.law_object.outputs.index(name)] for name in OUTPUTS]


def _plan(fit: Fit, axis: Axis) -> tuple[float, list[str]]:
    """A budget, half of what a plain run forgets by the last step, and what `plan` says for it."""
    low, high = fit.measured_range["trainable_params"]
    at = {"trainable_params": float(np.sqrt(low * high)), "step": fit.measured_range["step"][1], axis.column: 0.0}
    forgotten = float(fit.predict("forgetting", **at).value)
    if not finite(forgotten) or forgotten <= 0:
        return 0.1, []
    budget = float(f"{forgotten / 2:.2g}")
    try:
        return budget, list(plan_mitigated(fit, budget=budget).sentences)
    except UsageError as error:  # for example no way from ranks to parameters
        return budget, [f"no plan: {error}"]

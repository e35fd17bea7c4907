"""The law over the share of replay in a study's report: parameters, measured against fitted, where it stops paying."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forgetting.analysis.fit import Fit
from forgetting.analysis.fit.curves import bands_said, law_curve
from forgetting.analysis.plan.replay import plan_replay
from forgetting.display.charts import Chart, plain_layout
from forgetting.display.commands import exact
from forgetting.display.numbers import finite, level, number
from forgetting.errors import UsageError
from forgetting.measuring.quantities import AXES
from forgetting.reporting.lawtable import ParameterRow, parameter_row
from forgetting.reporting.points import points_trace
from forgetting.reporting.series import Panel, Series
from forgetting.store.table import replay_alone

SHARE = "replay_fraction"
OUTPUTS = ("forgetting", "finetune_loss")


@dataclass(frozen=True)
class Share:
    """What was measured and fitted at one share of replay, as text of each cell."""

    share: str
    measurements: str
    forgetting: tuple[str, str]
    errors: tuple[str, str]


@dataclass(frozen=True)
class ReplaySection:
    """The section of one data set.

    Attributes:
        formula, confidence, support: of the law.
        r2: of forgetting and of the fine-tuning loss.
        parameters: with their intervals.
        shares: measured against fitted.
        step: the last one, whose forgetting is in `shares`.
        budget: of the plan that `sentences` are of, nats/token.
        sentences: as `plan` prints them; where replay stops paying comes first.
        words: what to give `plan` for them.
        warnings: of the fit.
    """

    formula: str
    confidence: str
    support: str
    r2: tuple[str, str]
    parameters: tuple[ParameterRow, ...]
    shares: tuple[Share, ...]
    step: str
    budget: str
    sentences: tuple[str, ...]
    words: tuple[str, ...]
    warnings: tuple[str, ...]


def replay_section(panel: Panel) -> ReplaySection | None:
    """The section; None without a fitted law over the share of replay."""
    fit = panel.replay
    if fit is None:
        return None
    rows = replayed(panel)
    if rows.empty:
        return None
    budget, sentences = _plan(fit)
    return ReplaySection(
        formula=str(fit.law_object.formula),
        confidence=level(fit.confidence),
        support=fit.support("measurement"),
        r2=(number(fit.r2["forgetting"]), number(fit.r2["finetune_loss"])),
        parameters=tuple(parameter_row(name, [fit]) for name in fit.parameters),
        shares=tuple(_shares(fit, rows)),
        step=f"{rows['step'].max():.0f}",
        budget=f"{budget:g}",
        sentences=tuple(sentences),
        words=("--dataset", panel.name, "--budget", exact(budget)),
        warnings=tuple(fit.warnings),
    )


def replayed(panel: Panel) -> pd.DataFrame:
    """The rows of the law: plain runs and those with replay alone, of one method, at steps that were fitted."""
    fit, points = panel.replay, panel.points
    if fit is None:
        return points.iloc[:0]
    points = points[points[SHARE].notna() & (points["step"] >= fit.measured_range["step"][0])]
    with_replay = points.loc[points[SHARE] > 0, "label"]
    if with_replay.empty:
        return points.iloc[:0]
    points = points[points["label"] == with_replay.mode().iloc[0]]
    plain = points["mitigation"] == ""
    alone: pd.Series[bool] = replay_alone(points[~plain]).reindex(points.index, fill_value=False)
    kept: pd.DataFrame = points[plain | alone]
    return kept


def replay_chart(panel: Panel) -> Chart | None:
    """Forgetting at the last step against the share of replay, with the law; None without the law or such rows."""
    fit, rows = panel.replay, replayed(panel)
    if fit is None or rows.empty:
        return None
    step = float(rows["step"].max())
    last = rows[rows["step"] == step]
    ranked = [(s, size) for s in panel.series if (size := _size(panel, s, last)) is not None]
    data: list[dict[str, Any]] = []
    shown = ranked[len(ranked) // 2][0] if ranked else None
    bounds = [0.0, fit.measured_range[SHARE][1]]
    for series, size in ranked:
        at = {"trainable_params": size, "step": step}
        look: dict[str, Any] = {"colour": f"var(--{series.key})", "width": 1.4, "key": series.key}
        data += law_curve(fit, "forgetting", SHARE, bounds, at=at, band=series is shown, **look)
    for series, size in ranked:
        mine = last[last["trainable_params"] == size].sort_values([SHARE, "run_id"])
        data.append(points_trace(mine, SHARE, "forgetting", f"var(--{series.key})", "circle", series.key))
    caption = (
        f"At step {step:.0f}, the last one. Bars are one standard error, clustered by document. Curves are the law"
    )
    caption += f", fitted to {fit.support('measurement')} (R² {number(fit.r2['forgetting'])})."
    if (bands := bands_said(data, level(fit.confidence))) and shown is not None:
        caption += f" Bands at {shown.label}: {bands}."
    alt = f"Forgetting at step {step:.0f} against the share of replay; the numbers are in the table by share below."
    layout = plain_layout("share of replay p", AXES["forgetting"])
    layout["yaxis"]["rangemode"] = "tozero"
    return Chart("replay", "Forgetting against the share of replay", caption, alt, {"data": data, "layout": layout})


def _size(panel: Panel, series: Series, rows: pd.DataFrame) -> float | None:
    """Trainable parameters of a plain ranked series that has rows of the law; None for others."""
    size = float(panel.of(series)["trainable_params"].median())
    plain = series.symbol == "circle" and " + " not in series.label
    return size if plain and bool((rows["trainable_params"] == size).any()) else None


def _shares(fit: Fit, rows: pd.DataFrame) -> list[Share]:
    """One row per share: forgetting at the last step, measured and fitted, and both errors over all steps."""
    made = _fitted(fit, rows)
    found = []
    last = (rows["step"] == rows["step"].max()).to_numpy()
    for share in sorted(rows[SHARE].unique()):
        here = (rows[SHARE] == share).to_numpy()
        measured = rows["forgetting"].to_numpy(float)
        at_end = here & last
        ends = (measured[at_end].mean(), made[0][at_end].mean()) if at_end.any() else (np.nan, np.nan)
        errors = [
            float(np.sqrt(np.mean((rows[name].to_numpy(float)[here] - made[i][here]) ** 2)))
            for i, name in enumerate(OUTPUTS)
        ]
        found.append(
            Share(
                f"{share:g}",
                f"{int(here.sum())} of {rows.loc[here, 'run_id'].nunique()} runs",
                (number(float(ends[0])), number(float(ends[1]))),
                (number(errors[0]), number(errors[1])),
            )
        )
    return found


def _fitted(fit: Fit, rows: pd.DataFrame) -> list[NDArray[np.float64]]:
    """The law's values at each row, in the order of OUTPUTS."""
    law, theta, _ = fit.model()
    x = {name: rows[name].to_numpy(float) for name in ("trainable_params", "step", SHARE)}
    values = law.values(theta[None], x)[0]
    return [values[fit.law_object.outputs.index(name)] for name in OUTPUTS]


def _plan(fit: Fit) -> tuple[float, list[str]]:
    """A budget, half of what a plain run forgets in the end, and what `plan` says of replay within it."""
    low, high = fit.measured_range["trainable_params"]
    at = {"trainable_params": float(np.sqrt(low * high)), "step": fit.measured_range["step"][1], SHARE: 0.0}
    forgotten = float(fit.predict("forgetting", **at).value)
    if not finite(forgotten) or forgotten <= 0:
        return 0.1, []
    budget = float(f"{forgotten / 2:.2g}")
    try:
        return budget, list(plan_replay(fit, budget=budget).sentences)
    except UsageError as error:  # for example no way from ranks to parameters
        return budget, [f"no plan: {error}"]

"""A study's answer in sentences, and displayed names of parameters and methods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forgetting.display.numbers import NBSP, finite, interval, level, number, plus_minus
from forgetting.reporting.series import METHOD_NAMES, Panel, Series

if TYPE_CHECKING:
    from forgetting.analysis.fit import Fit

GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "rho": "ρ", "eta": "η", "epsilon": "ε"}


def symbol(name: str) -> tuple[str, str]:
    """The letter and subscript of a parameter or column.

    Examples:
        >>> symbol("alpha_ft"), symbol("rho"), symbol("finetune_loss")
        (('α', 'ft'), ('ρ', ''), ('L', 'ft'))
    """
    known = {"finetune_loss": ("L", "ft"), "forgetting_loss": ("L", "f"), "trainable_params": ("P", "")}
    if name in known:
        return known[name]
    if name == "step":
        return "N", ""
    head, _, tail = name.partition("_")
    return GREEK.get(head, head), tail


@dataclass(frozen=True)
class Headline:
    """The answer for one data set: the line's slope in words, and the forgetting at the last step."""

    dataset: str
    cost: str
    state: str


def headline(panel: Panel) -> Headline:
    """The two sentences that summarise one data set."""
    return Headline(panel.name, _cost(panel), _state(panel))


def _cost(panel: Panel) -> str:
    if panel.linear is None:
        return f"no line is fitted yet: {missing_fit(panel, 'linear')}."
    slope = panel.linear.parameters["c_fft"]
    details = [f"R² {number(r2(panel.linear, 'forgetting_loss'))}"]
    if between := interval(slope.low, slope.high):
        details.insert(0, f"{level(panel.linear.confidence)} interval {between}")
    aside = f"({'; '.join(details)})"
    value = number(slope.value)
    if slope.value <= 0 or (finite(slope.low) and slope.low <= 0):
        return f"forgetting does not clearly grow as the fine-tuning loss falls: the slope is {value} {aside}."
    unit = "nat" if value == "1.00" else "nats"
    return f"each nat of improvement in fine-tuning loss cost {value} {unit} of forgetting {aside}."


def _state(panel: Panel) -> str:
    if panel.points.empty:
        return "No measurement after step 0 is stored."
    # not of the points: among means over runs, those of done and of running runs would count alike
    last = panel.measured[panel.measured["step"] == panel.measured["step"].max()]
    present = [s for s in panel.series if last["run_id"].isin(s.runs).any()]
    ranked = [s for s in present if s.symbol == "circle"] or present
    small, large = ranked[0], ranked[-1]
    text = (
        f"At step {last['step'].iloc[0]:.0f}, {small.label} has forgotten {_mean(last, small, 'forgetting')} nats/token"
    )
    subject = "it"
    if large is not small:
        same = large.rank is not None and large.label.removesuffix(str(large.rank)) == small.label.removesuffix(
            str(small.rank)
        )
        text += f" and {f'rank {large.rank}' if same else large.label} {_mean(last, large, 'forgetting')}"
        subject = "the latter"
    agreement = _mean(last, large, "agreement", 100)
    return text + (
        f"; {subject} agrees with the base model on {agreement}{NBSP}% of tokens." if agreement != "–" else "."
    )


def _mean(rows: Any, series: Series, column: str, scale: float = 1.0) -> str:
    """Mean over the series' runs, with their mean standard error, since the runs share their documents."""
    mine = rows[rows["run_id"].isin(series.runs)]
    return plus_minus(float(mine[column].mean()), float(mine[f"{column}_se"].mean()), scale, digits=1)


NOT_FITTED = "shifted_power was not fitted: "
"""Begins a warning of the linear fit that says why the joint law was not fitted."""


def missing_fit(panel: Panel, law: str) -> str:
    """Why a law has no fit: the linear fit's warning about it, else how many measurements finished runs have."""
    for warning in panel.linear.warnings if panel.linear and law == "shifted_power" else ():
        if warning.startswith(NOT_FITTED):
            return warning.removeprefix(NOT_FITTED)
    done = panel.measured[panel.measured["status"] == "done"]
    runs = done["run_id"].nunique()
    if runs == 0:
        return "no run has finished"
    have = f"{len(done)} {'measurement' if len(done) == 1 else 'measurements'} of {runs} finished"
    return f"no fit is stored for the {have} {'run' if runs == 1 else 'runs'}"


def r2(fit: Fit, column: str) -> float:
    """R² of one output; NaN if the fit has none."""
    return float(fit.r2.get(column, math.nan))


def method_name(name: str) -> str:
    """A method's displayed name."""
    return METHOD_NAMES.get(name, name.replace("_", " "))

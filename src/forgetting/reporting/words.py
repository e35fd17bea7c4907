"""Numbers and findings as a reader wants them: values with their errors, and the study's answer in sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forgetting.reporting.series import METHOD_NAMES, Panel, Series

if TYPE_CHECKING:
    from forgetting.analysis.fit import Fit

MINUS = "−"
NBSP = "\u00a0"  # keeps a value beside its error or unit
GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "rho": "ρ", "eta": "η", "epsilon": "ε"}


def finite(value: Any) -> bool:
    """Whether `value` is a number one can print."""
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """A number to `digits` significant digits, plain where that is short, with a true minus sign.

    Examples:
        >>> number(0.12345), number(-1.0), number(1.5e9), number(None)
        ('0.123', '−1.00', '1.50 × 10⁹', '–')
    """
    if not finite(value):
        return "–"
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if -4 <= power < 6:
        text = f"{value:,.{max(digits - 1 - power, 0)}f}"
    else:
        raised = str(power).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
        text = f"{value / 10**power:.{digits - 1}f} × 10{raised}"
    return text.replace("-", MINUS)


def plus_minus(value: Any, error: Any, scale: float = 1.0, digits: int = 2) -> str:
    """`value ± error`, both to the error's second significant digit, or as many as `digits` says.

    Examples:
        >>> plus_minus(0.97281, 0.00412) == f"0.9728{NBSP}±{NBSP}0.0041"
        True
        >>> plus_minus(0.5, float("nan"))
        '0.500'
    """
    if not finite(value):
        return "–"
    if not finite(error) or error <= 0:
        return number(value * scale)
    value, error = value * scale, error * scale
    places = min(max(digits - 1 - math.floor(math.log10(error)), 0), 8)
    return f"{value:.{places}f}{NBSP}±{NBSP}{error:.{places}f}".replace("-", MINUS)


def count(value: Any) -> str:
    """A count with a suffix: `19.99 M`; below 10,000 in full.

    Examples:
        >>> count(19_988_480), count(1234), count(float("nan"))
        ('20.0 M', '1,234', '–')
    """
    if not finite(value):
        return "–"
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{number(value / (1e3 if suffix == 'k' else size))} {suffix}"
    return f"{value:,.0f}"


def duration(seconds: Any) -> str:
    """Seconds as `42 s`, `3 min 20 s` or `2 h 05 min`."""
    if not finite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def symbol(name: str) -> tuple[str, str]:
    """A parameter's or column's letter and its subscript.

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


def level(confidence: float) -> str:
    """A confidence level in per cent: `95 %`."""
    return f"{100 * confidence:g}{NBSP}%"


def interval(low: Any, high: Any, digits: int = 3) -> str:
    """`low to high`, with as many digits as tell the two apart; nothing where it could not be had."""
    if not (finite(low) and finite(high)):
        return ""
    while number(low, digits) == number(high, digits) and digits < 7 and low != high:
        digits += 1
    return f"{number(low, digits)} to {number(high, digits)}"


@dataclass(frozen=True)
class Headline:
    """The answer for one data set: what the line says, and where the runs stand at the last step."""

    dataset: str
    cost: str
    state: str


def headline(panel: Panel) -> Headline:
    """The two sentences that a reader takes away for one data set."""
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
    return f"each nat of fine-tuning loss gained costs {value} {unit} of forgetting {aside}."


def _state(panel: Panel) -> str:
    if panel.points.empty:
        return "No measurement after step 0 is stored."
    last = panel.last()
    present = [s for s in panel.series if (last["series"] == s.key).any()]
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
    """Mean over the series' runs; its error is the mean one, for the runs share their documents."""
    mine = rows[rows["series"] == series.key]
    return plus_minus(float(mine[column].mean()), float(mine[f"{column}_se"].mean()), scale, digits=1)


NOT_FITTED = "shifted_power was not fitted: "  # how a study's linear fit says why it stands alone


def missing_fit(panel: Panel, law: str) -> str:
    """Why a law has no fit here: the other fit's word where it gave one, else what is stored."""
    for warning in panel.linear.warnings if panel.linear and law == "shifted_power" else ():
        if warning.startswith(NOT_FITTED):
            return warning.removeprefix(NOT_FITTED)
    done = panel.points[panel.points["status"] == "done"]
    runs = done["run_id"].nunique()
    if runs == 0:
        return "no run has finished"
    have = f"{len(done)} {'measurement' if len(done) == 1 else 'measurements'} of {runs} finished"
    return f"no fit is stored for the {have} {'run' if runs == 1 else 'runs'}"


def r2(fit: Fit, column: str) -> float:
    """R² of one output; NaN where the fit has none."""
    return float(fit.r2.get(column, math.nan))


def method_name(name: str) -> str:
    """A method's name for readers."""
    return METHOD_NAMES.get(name, name.replace("_", " "))

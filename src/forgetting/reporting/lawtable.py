"""The fitted laws as tables of text: a row per parameter, a column per data set, and notes on each fit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forgetting.analysis.fit import show
from forgetting.analysis.fit.estimate import Estimate
from forgetting.analysis.laws.published import PUBLISHED
from forgetting.display.numbers import MINUS, count, interval, level, number
from forgetting.reporting.series import Panel
from forgetting.reporting.words import NOT_FITTED, missing_fit, r2, symbol

if TYPE_CHECKING:
    from forgetting.analysis.fit import Fit

PAPER = (("OpenOrca", "kalajdzievski2024/openorca"), ("News", "kalajdzievski2024/news"))


@dataclass(frozen=True)
class ParameterRow:
    """One parameter: its letter and subscript, its meaning, and (value, interval) for each data set."""

    letter: str
    below: str
    meaning: str
    estimates: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FitNote:
    """Notes on one fit: the rows it used, their ranges, its warnings, and its diagnostics as JSON text."""

    dataset: str
    support: str
    ranges: tuple[tuple[str, str, str], ...]
    warnings: tuple[str, ...]
    diagnostics: str


@dataclass(frozen=True)
class LawTable:
    """One law's fits to the data sets.

    Attributes:
        name: `linear` or `shifted_power`; the page writes its formula.
        columns: data sets that have a fit.
        confidence: nominal coverage of the intervals.
        rows: its parameters.
        r2: for each output, its subscript and R² by data set.
        paper: the paper's R² of L_f with this law.
        notes: one per fit.
        missing: for each data set without a fit, its name and the reason.
    """

    name: str
    columns: tuple[str, ...]
    confidence: str
    rows: tuple[ParameterRow, ...]
    r2: tuple[tuple[str, tuple[str, ...]], ...]
    paper: str
    notes: tuple[FitNote, ...]
    missing: tuple[tuple[str, str], ...]


def law_table(name: str, panels: Sequence[Panel]) -> LawTable:
    """The table of one law, `linear` or `shifted_power`."""
    fits = {p.name: p.linear if name == "linear" else p.joint for p in panels}
    made: dict[str, Fit] = {key: fit for key, fit in fits.items() if fit is not None}
    names = list(dict.fromkeys(key for fit in made.values() for key in fit.parameters))
    outputs = list(dict.fromkeys(key for fit in made.values() for key in fit.r2))
    return LawTable(
        name=name,
        columns=tuple(made),
        confidence=" and ".join(dict.fromkeys(level(fit.confidence) for fit in made.values())),
        rows=tuple(parameter_row(key, list(made.values())) for key in names),
        r2=tuple((symbol(key)[1] or key, tuple(number(r2(fit, key)) for fit in made.values())) for key in outputs),
        paper=" and ".join(f"{number(_paper_r2(name, key))} on {data}" for data, key in PAPER),
        notes=tuple(_note(key, fit) for key, fit in made.items()),
        missing=tuple((p.name, missing_fit(p, name)) for p in panels if fits[p.name] is None),
    )


def _paper_r2(law: str, key: str) -> float:
    published = PUBLISHED[key]
    return float(published.constants["r2_of_line"] if law == "linear" else published.r2["forgetting_loss"])


def parameter_row(key: str, fits: Sequence[Fit]) -> ParameterRow:
    """One parameter of a law, as fitted to each data set."""
    about = {p.name: p for p in fits[0].law_object.parameters}.get(key)
    held = about is not None and about.gauge is not None
    estimates = []
    for fit in fits:
        estimate = fit.parameters.get(key)
        if estimate is None:
            estimates.append(("–", ""))
        else:
            estimates.append(_texts(estimate, held=held, scale=about is not None and about.log))
    return ParameterRow(*symbol(key), about.meaning if about else "", tuple(estimates))


def _texts(estimate: Estimate, *, held: bool, scale: bool) -> tuple[str, str]:
    """A parameter's value and interval as text: numbers, or the words of `fit` where it has no numbers."""
    value, between = show.value(estimate, scale=scale), show.ends(estimate)
    if value == show.number(estimate.value):
        value = number(estimate.value, 4)
    if math.isfinite(estimate.high - estimate.low) and not show.folded(estimate) and between[:1] != "a":
        between = interval(estimate.low, estimate.high)
    return value.replace("-", MINUS), "held (gauge)" if held else "" if between == "-" else between.replace("-", MINUS)


def _note(dataset: str, fit: Fit) -> FitNote:
    ranges = []
    for name, (low, high) in fit.measured_range.items():
        show = count if name in ("trainable_params", "step") else number
        ranges.append((*symbol(name), f"{show(low)} to {show(high)}"))
    return FitNote(
        dataset=dataset,
        support=fit.support("measurement"),
        ranges=tuple(ranges),
        warnings=tuple(w for w in fit.warnings if not w.startswith(NOT_FITTED)),
        diagnostics=json.dumps(dict(fit.diagnostics), indent=1, default=str) if fit.diagnostics else "",
    )

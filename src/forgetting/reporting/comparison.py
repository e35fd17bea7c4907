"""The report's section that compares methods at equal fine-tuning loss: ranking, chart, Appendix B, cards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forgetting.analysis.compare import Comparison, Contest
from forgetting.analysis.compare.beyond import LAWS as EQUATIONS
from forgetting.analysis.compare.beyond import PAPER
from forgetting.analysis.compare.plane import Look, plane
from forgetting.analysis.compare.source import INTERPOLATION, Key
from forgetting.analysis.compare.words import (
    cost,
    flat_words,
    frontier_words,
    line_words,
    number,
    reach,
    sentence,
    span,
)
from forgetting.display.numbers import MINUS, count, duration, finite, level, p_value
from forgetting.reporting.series import Series
from forgetting.tuning.methods import METHODS
from forgetting.tuning.mitigations import MITIGATIONS

if TYPE_CHECKING:
    from forgetting.analysis.compare.contest import Contender
    from forgetting.analysis.compare.estimate import Estimate

VIEW = (320.0, 30.0)  # width and height of an interval's drawing, in SVG units
KINDS = {"saves": "good", "costs": "bad"}


@dataclass(frozen=True)
class Ranked:
    """One contender in the ranking.

    Attributes:
        name: displayed name.
        swatch: CSS classes of its colour and shape.
        kind: `good`, `bad`, or empty if there is no finding.
        says: the finding in words.
        aside: further information that a reader needs, or empty.
        mark: x positions of the interval's low end, value and high end in the drawing; None without a value.
        cells: its row in the table of numbers.
    """

    name: str
    swatch: str
    kind: str
    says: str
    aside: str
    mark: tuple[float | None, float, float | None] | None
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """Describes a method or mitigation: its name, what it does, its cost and its sources."""

    name: str
    what: str
    cost: str
    sources: str


HEADS = (
    "saved",
    "at its last step",
    "over all ranks",
    "Holm’s p",
    "compared at L|ft",
    "steps",
    "time",
    "memory",
    "seeds",
)


def comparison_section(
    comparison: Comparison | None, series: Sequence[Series], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The values for the template; None if nothing was compared.

    Args:
        comparison: the comparison of the study's table.
        series: the report's series, for their colours.
        runs: the run records, for the cards.
    """
    if comparison is None:
        return None
    of_run = {run: s for s in series for run in s.runs}
    return {
        "reference": comparison.reference,
        "contests": [_contest(i, c, of_run) for i, c in enumerate(comparison.contests.values())],
        "without": comparison.without,
        "cards": cards(comparison, runs),
        "beyond": [
            (name, r.label, EQUATIONS[r.law], _r2(r.r2), _r2(r.reference_r2), signed(r.bias), f"{r.rows} of {r.runs}")
            for name, found in comparison.beyond.items()
            for r in found
        ],
        "paper": " and ".join(f"{value:.4f} with {EQUATIONS[law]}" for law, value in PAPER.items()),
    }


def _contest(i: int, c: Contest, of_run: Mapping[str, Series]) -> dict[str, Any]:
    styles = {key: next((of_run[run] for run in runs if run in of_run), None) for key, runs in c.runs.items()}
    raw = c.flat and not any(math.isfinite(one.saving.value) for one in c.contenders)
    low, high = _range([one.raw if raw else one.saving for one in c.contenders])
    looks = {key: Look(s.key, f"var(--{s.key})", s.symbol) for key, s in styles.items() if s is not None}
    chart, hover = plane(c, looks)
    ranked = [_ranked(one, c, styles[one.key], low, high, raw=raw) for one in c.contenders]
    shown = {s.key: s for key, s in styles.items() if s is not None and INTERPOLATION not in key.mitigation}
    return {
        "key": f"c{i}",
        "dataset": c.dataset,
        "axis": c.axis.name,
        "level": level(c.confidence),
        "line": _minus(line_words(c)),
        "flat": flat_words(c),
        "ranked": ranked,
        "zero": _place(0.0, low, high),
        "ends": (signed(low), signed(high)),
        "chart": chart,
        "legend": sorted(shown.values(), key=lambda s: int(s.key.removeprefix("s"))),  # the reference's ranks first
        "payload": {"hover": hover, "charts": [{"kind": chart.kind, "spec": chart.spec}]},
        "frontier": frontier_words(c.points),
        "notes": c.notes,
        "raw": raw,
        "heads": (*HEADS, *(("below the mean", f"higher {c.axis.name}") if c.flat else ())),
    }


def _range(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """The lowest and highest saving that the drawings show, in nats/token; includes zero."""
    ends = [v for e in estimates for v in (e.low, e.high, e.value) if math.isfinite(v)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def _place(value: float, low: float, high: float) -> float:
    return round((value - low) / (high - low) * VIEW[0], 1)


def _ranked(one: Contender, c: Contest, style: Series | None, low: float, high: float, *, raw: bool = False) -> Ranked:
    """One contender; `raw` draws the difference from the reference's mean, for a reference that has no line."""
    e, p = one.saving, one.price
    drawn = one.raw if raw else e
    mark = None
    if math.isfinite(drawn.value):
        ends = (_place(drawn.low, low, high), _place(drawn.high, low, high)) if drawn.known else (None, None)
        mark = (ends[0], _place(drawn.value, low, high), ends[1])
    paid = ("–", "–", "–")
    if p is not None:
        paid = (
            _beside(p.steps, p.reference_steps, lambda v: f"{v:.0f}"),
            _beside(p.seconds, p.reference_seconds, duration),
            _beside(p.memory, p.reference_memory, lambda v: f"{v:,.0f} MiB"),
        )
    between = f"{number(one.high)} to {number(one.low)}" if p else "–"
    cells = (_minus(span(e)), _minus(span(one.final)), _minus(span(one.over_ranks)), _p(one.adjusted_p), between)
    aside = [reach(one, c), f"against {one.against}" + (f", {paid_for}" if (paid_for := cost(one)) else "")]
    return Ranked(
        name=_name(one.key, style),
        swatch=f"{style.key} {style.symbol}" if style else "",
        kind=KINDS.get(one.verdict, ""),
        says=_minus(sentence(one, c)),
        aside="; ".join(text for text in aside if text),
        mark=mark,
        cells=(*cells, *paid, str(len(one.seeds)), *((_minus(span(one.raw)), signed(one.raw_axis)) if c.flat else ())),
    )


def _name(key: Key, style: Series | None) -> str:
    """The name in the legend; interpolated weights share their run's series, so the name says that they are."""
    if style is None:
        return str(key)
    return style.label + (
        f" + {INTERPOLATION}" if INTERPOLATION in key.mitigation and INTERPOLATION not in style.label else ""
    )


def _beside(mine: float, reference: float, show: Callable[[float], str]) -> str:
    """The contender's value with the reference's in brackets, such as `120 (80)`."""
    if not finite(mine):
        return "–"
    return show(mine) + (f" ({show(reference)})" if finite(reference) else "")


def _p(value: float) -> str:
    return p_value(value) if math.isfinite(value) else "–"


def _r2(value: float) -> str:
    return f"{value:.3f}".replace("-", MINUS) if math.isfinite(value) else "–"


def _minus(text: str) -> str:
    return "–" if text == "-" else text.replace("[-", f"[{MINUS}").replace(" -", f" {MINUS}").replace("(-", f"({MINUS}")


def signed(value: float) -> str:
    """A number with its sign and three decimals; a dash if unknown.

    Examples:
        >>> signed(0.1), signed(-0.25), signed(0.0)
        ('+0.100', '−0.250', '0.000')
    """
    if not math.isfinite(value):
        return "–"
    return f"{value:+.3f}".replace("-", MINUS) if abs(value) >= 5e-4 else "0.000"


def cards(comparison: Comparison, runs: Sequence[Mapping[str, Any]]) -> list[Card]:
    """One card for each label and each mitigation that was compared."""
    kinds: dict[str, tuple[str, list[float]]] = {}
    for run in runs:
        method = run.get("method")
        name = str(method.get("name")) if isinstance(method, Mapping) else str(run.get("method", ""))
        sizes = kinds.setdefault(str(run.get("label") or name), (name, []))[1]
        if finite(run.get("trainable_params")):
            sizes.append(float(run["trainable_params"]))
    compared = [one for c in comparison.contests.values() for one in c.contenders]
    labels = dict.fromkeys([comparison.reference, *(one.key.label for one in compared)])
    made = [_method_card(label, *kinds.get(label, (label, []))) for label in labels]
    names = dict.fromkeys(
        part.split()[0] for one in compared for part in one.key.mitigation.split(" + ") if part.strip()
    )
    return made + [_mitigation_card(name, compared) for name in names]


def _method_card(label: str, method: str, sizes: Sequence[float]) -> Card:
    kind = METHODS.get(method)
    spread = dict.fromkeys(count(size) for size in sorted(sizes))
    few = list(spread) if len(spread) < 4 else [next(iter(spread)), "…", list(spread)[-1]]
    params = f"P = {', '.join(few)}".replace(", …, ", " to ") if few else ""
    return Card(label, _first(kind), params, ", ".join(kind.references) if kind else "")


def _mitigation_card(name: str, compared: Sequence[Contender]) -> Card:
    kind = MITIGATIONS.get(name)
    mine = [one for one in compared if name in {p.split()[0] for p in one.key.mitigation.split(" + ") if p.strip()}]
    prices = [one.price for one in mine if one.price is not None]
    ratios = [p.seconds / p.reference_seconds for p in prices if finite(p.seconds) and p.reference_seconds > 0]
    paid = f"{min(ratios):.2f} to {max(ratios):.2f} times the reference’s time to the same loss" if ratios else ""
    if ratios and f"{min(ratios):.2f}" == f"{max(ratios):.2f}":
        paid = f"{ratios[0]:.2f} times the reference’s time to the same loss"
    return Card(name, _first(kind), paid, ", ".join(kind.references) if kind else "")


def _first(kind: type | None) -> str:
    """The first line of a class's docstring."""
    return ((kind.__doc__ or "") if kind else "").strip().split("\n")[0]

"""A comparison as tables and sentences for readers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from forgetting.analysis.compare.beyond import LAWS as EQUATIONS
from forgetting.analysis.compare.beyond import PAPER, Beyond
from forgetting.analysis.compare.contest import NO_LINE, Contender, Contest
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
from forgetting.display.numbers import p_value
from forgetting.display.tables import Shown

WIDTH = 96


def contest_shown(c: Contest) -> list[Shown]:
    """Savings, prices and the frontier of one data set; differences from the reference's mean if it is not a line."""
    heading = [f"{c.dataset}: nats/token of forgetting saved at equal {c.axis.name}, against {c.reference}"]
    heading.append(f"({c.confidence:.0%} intervals; above 0 is better than stopping the reference early)")
    heading += [line for text in (line_words(c), flat_words(c)) if text for line in _wrapped(text)]
    last = _wrapped(f"Pareto frontier: {frontier_words(c.points)}")
    last += [line for note in c.notes for line in _wrapped(f"note: {note}")]
    beside = [one for one in c.contenders if math.isfinite(one.raw_axis)]
    judged = [one for one in c.contenders if one not in beside]
    if not judged:
        return [_raw_shown(c, beside, heading[:1] + heading[2:], last)]
    parts = [_savings_shown(c, judged, heading, [] if beside else last)]
    return [*parts, _raw_shown(c, beside, [], last)] if beside else parts


def _savings_shown(c: Contest, contenders: Sequence[Contender], heading: list[str], last: list[str]) -> Shown:
    head = ("", "saved", "at the end", "over ranks", "Holm p", "compared", "seeds")
    rows, notes = [], []
    for one in contenders:
        between = f"{number(one.high)} to {number(one.low)}" if one.price else "-"
        p = p_value(one.adjusted_p) if math.isfinite(one.adjusted_p) else "-"
        rows.append(
            (str(one.key), span(one.saving), span(one.final), span(one.over_ranks), p, between, str(len(one.seeds)))
        )
        said = [sentence(one, c), reach(one, c)]
        if paid := cost(one):
            said.append(f"against {one.against}: {paid}")
        notes += _wrapped(f"{one.key}: " + "; ".join(s for s in said if s))
    return Shown(heading, head, rows, notes + last)


def _raw_shown(c: Contest, contenders: Sequence[Contender], heading: list[str], last: list[str]) -> Shown:
    """Differences from the mean of a reference that is not a line; they are not ranked, and so sorted by name."""
    title = (
        f"Not ranked: how far below the reference's mean each ends (with the {c.confidence:.0%} interval for one more "
        f"curve of the reference), and how much higher its {c.axis.name} is there"
    )
    head = ("", "below the mean", f"higher {c.axis.name}", "seeds", "")
    rows = [
        (
            str(one.key),
            span(one.raw),
            number(one.raw_axis),
            str(len(one.seeds)),
            "" if one.verdict == NO_LINE else sentence(one, c).split(":")[0],
        )
        for one in contenders
    ]
    return Shown([*heading, *_wrapped(title)], head, rows, last)


def beyond_shown(reference: str, beyond: Mapping[str, Sequence[Beyond]]) -> Shown:
    """Appendix B of every data set: how well the laws fitted to the reference predict the other methods."""
    heading = [f"Do the laws fitted to {reference} hold for the other methods' plain runs (Appendix B)?"]
    head = ("", "law", "R2", f"R2 on {reference}", "measured - predicted", "runs")
    rows = [
        (f"{name}: {r.label}", EQUATIONS[r.law], number(r.r2), number(r.reference_r2), number(r.bias), str(r.runs))
        for name, found in beyond.items()
        for r in found
    ]
    paper = " and ".join(f"{value:.4f} ({EQUATIONS[law]})" for law, value in PAPER.items())
    return Shown(heading, head, rows, [f"In the paper, over all other methods together: {paper}."])


def contender_row(one: Contender, c: Contest) -> dict[str, Any]:
    """One contender as a flat row."""
    row: dict[str, Any] = {
        "dataset": c.dataset,
        "name": str(one.key),
        "label": one.key.label,
        "mitigation": one.key.mitigation,
        "rank": one.key.rank if one.key.rank >= 0 else None,
        "verdict": one.verdict,
    }
    for name, e in (("saving", one.saving), ("final", one.final), ("over_ranks", one.over_ranks)):
        row |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
    row |= {"raw": one.raw.value, "raw_low": one.raw.low, "raw_high": one.raw.high, "raw_axis": one.raw_axis}
    paid = {} if one.price is None else asdict(one.price)
    return row | {"adjusted_p": one.adjusted_p, **paid, "seeds": len(one.seeds)}


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)

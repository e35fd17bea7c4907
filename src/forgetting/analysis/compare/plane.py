"""The trade-off plane of a comparison: every curve's mean over its seeds, and the Pareto frontier."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forgetting.analysis.compare.contest import Contest
from forgetting.analysis.compare.pareto import Point
from forgetting.analysis.compare.source import INTERPOLATION, Key
from forgetting.analysis.compare.words import frontier_words
from forgetting.display.charts import OTHERS, RANKS_LIGHT, Chart, blend, note, plain_layout, rank_place
from forgetting.display.numbers import plus_minus

FRONT = "front"


@dataclass(frozen=True)
class Look:
    """How a curve is drawn: name of its series, colour (or CSS variable), and marker symbol."""

    series: str
    colour: str
    symbol: str


PLAIN = Look("other", "var(--soft)", "circle")


def plane(c: Contest, looks: Mapping[Key, Look]) -> tuple[Chart, list[str]]:
    """The chart, and the hover text of each of its points.

    Args:
        c: the comparison.
        looks: styles of its curves; those without one are grey.
    """
    hover = [_hover(p) for p in c.points]
    rows = {id(p): i for i, p in enumerate(c.points)}
    data: list[dict[str, Any]] = []
    front = sorted((p for p in c.points if p.front), key=lambda p: p.loss)
    halo = {"color": "rgba(0,0,0,0)", "size": 15, "line": {"color": "var(--line-fit)", "width": 1.2}}
    data.append(_trace(front, FRONT, {"mode": "markers", "marker": halo, "hoverinfo": "skip"}, []))
    for key in c.runs:
        mine, look = [p for p in c.points if p.key == key], looks.get(key, PLAIN)
        reference = key in c.references
        dash = "dot" if INTERPOLATION in key.mitigation else "solid"
        style = {
            "mode": "lines+markers",
            "line": {"color": look.colour, "width": 1.2 if reference else 2, "dash": dash},
            "marker": {
                "color": look.colour,
                "symbol": look.symbol,
                "size": 5 if reference else 8,
                "line": {"color": "var(--surface)", "width": 0.8},
            },
            "hovertemplate": "%{text}<extra></extra>",
        }
        data.append(_trace(mine, look.series, style, [rows[id(p)] for p in mine]))
    layout = plain_layout(f"{c.axis.name} (mean over seeds)", "forgetting (nats/token)")
    if c.axis.higher:
        layout["xaxis"]["autorange"] = "reversed"
    layout["annotations"] = [note("ringed: on the Pareto frontier")]
    caption = (
        f"Each point is one measured step, averaged over its seeds; small circles are the reference, {c.reference}. "
        "Stopping earlier moves back along a curve, to the right and down; a method that saves forgetting lies below "
        "it. Dotted: weights interpolated towards the base model."
    )
    alt = f"{len(c.runs)} curves of forgetting against {c.axis.name}. On the frontier: {frontier_words(c.points)}."
    chart = Chart("plane", "The trade-off plane", caption, alt, {"data": data, "layout": layout}, wide=True)
    return chart, hover


def own_looks(c: Contest) -> tuple[dict[Key, Look], dict[str, str]]:
    """Styles of a comparison's curves, and names of their series; the reference's ranks share one colour scale."""
    reference = [key for key in c.runs if key in c.references]
    others = [key for key in c.runs if key not in reference]
    looks, names = {}, {}
    for i, key in enumerate([*reference, *others]):
        if key in reference:
            look = Look(f"s{i}", blend(RANKS_LIGHT, rank_place(i, len(reference))), "circle")
        else:
            light, _, symbol = OTHERS[others.index(key) % len(OTHERS)]
            look = Look(f"s{i}", light, symbol)
        looks[key], names[look.series] = look, html.escape(str(key))
    return looks, names


def _trace(points: Sequence[Point], series: str, look: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    meta = {"series": series, "role": "points" if rows else "halo"} | ({"rows": rows} if rows else {})
    return {
        "type": "scatter",
        "x": [p.loss for p in points],
        "y": [p.forgetting for p in points],
        "meta": meta,
        **look,
    }


def _hover(p: Point) -> str:
    seeds = f"{p.runs} seeds" if p.runs > 1 else "one seed"
    lines = [
        html.escape(str(p.key)),
        f"step {p.step:.0f} · {seeds}" if math.isfinite(p.step) else seeds,
        f"L_ft  {plus_minus(p.loss, p.loss_se)}",
        f"forgetting  {plus_minus(p.forgetting, p.forgetting_se)} nats/token",
    ]
    if p.front:
        lines.append("on the Pareto frontier" + (f", also in {p.seeds:.0%} of the seeds" if p.runs > 1 else ""))
    return "\n".join(lines)

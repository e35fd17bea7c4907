"""A small line chart as SVG; it needs no script, so the page's content security policy need not list one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from ..display.numbers import several

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 44
SIZE = 4.0


@dataclass(frozen=True)
class Line:
    """One run: its name, CSS colour, symbol (0 circle, 1 square, else diamond), and points (x, y, low, high)."""

    label: str
    colour: str
    symbol: int
    points: Sequence[tuple[float, float, float, float]]


PER_CENT = (0.0, 25.0, 50.0, 75.0, 100.0)


def chart(
    lines: Sequence[Line],
    base: float,
    x_label: str,
    y_label: str,
    *,
    y_ticks: Sequence[float] = PER_CENT,
    unit: str = " %",
) -> Markup:
    """The chart, with y from the first to the last of `y_ticks` and the base model's value as a dashed line.

    Args:
        lines: one per run.
        base: the base model's value.
        x_label, y_label: titles of the axes.
        y_ticks: round values of y, ascending; points beyond them are drawn at the edge.
        unit: unit of y in the points' tooltips.
    """
    values = [x for line in lines for x, *_ in line.points]
    if not values:
        return Markup("<p>Nothing to draw.</p>")
    ticks = nice(0.0, max(values))
    form = ".1f" if y_ticks[-1] >= 100 else ".3f"
    span = ticks[-1] or 1.0

    def px(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * x / span, 1)

    def py(y: float) -> float:
        first, last = y_ticks[0], y_ticks[-1]
        share = (min(max(y, first), last) - first) / (last - first)
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share, 1)

    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(y)}" y2="{py(y)}"/>' for y in y_ticks]
    parts += [f'<text x="{LEFT - 6}" y="{py(y) + 4}" text-anchor="end">{y:g}</text>' for y in y_ticks]
    parts += [f'<text x="{px(x)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>' for x in ticks]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(13 {HEIGHT / 2 - 15}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    parts.append(f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(base)}" y2="{py(base)}"/>')
    for line in lines:
        path = " ".join(f"{px(x)},{py(y)}" for x, y, *_ in line.points)
        colour = escape(line.colour)
        parts.append(f'<g style="--c:{colour}"><polyline points="{path}"/>')
        for x, y, low, high in line.points:
            said = escape(f"{line.label}: {x:.4g}, {y:{form}}{unit} [{low:{form}}, {high:{form}}]")
            parts.append(f'<line class="whisker" x1="{px(x)}" x2="{px(x)}" y1="{py(low)}" y2="{py(high)}"/>')
            parts.append(f"{_mark(line.symbol, px(x), py(y))}<title>{said}</title></path>")
        parts.append("</g>")
    drawn = f"{several(len(values), 'point')} of {several(len(lines), 'run')}"
    said = escape(f"{y_label} against {x_label}: {drawn}; the base model {base:{form}}{unit}")
    body = "".join(parts)
    return Markup(  # noqa: S704 - numbers, and texts that are escaped above
        f'<svg class="cap" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{body}</svg>'
    )


def _mark(symbol: int, x: float, y: float) -> str:
    """The opening tag of a point's path; the caller adds the tooltip and the closing tag."""
    s = SIZE
    if symbol == 0:
        d = f"M{x - s},{y}a{s},{s} 0 1 0 {2 * s},0a{s},{s} 0 1 0 {-2 * s},0"
    elif symbol == 1:
        d = f"M{x - s},{y - s}h{2 * s}v{2 * s}h{-2 * s}z"
    else:
        d = f"M{x},{y - 1.3 * s}l{1.3 * s},{1.3 * s}l{-1.3 * s},{1.3 * s}l{-1.3 * s},{-1.3 * s}z"
    return f'<path d="{d}">'


def nice(low: float, high: float) -> list[float]:
    """Evenly spaced ticks at a round distance, from `low` to `high` or just beyond."""
    if high <= low:
        return [low, low + 1]
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    count = math.ceil((high - low) / step - 1e-9)
    return [round(low + i * step, 10) for i in range(count + 1)]

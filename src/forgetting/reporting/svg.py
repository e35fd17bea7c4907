"""The frame of a small chart drawn as SVG: axes with ticks and titles, and the positions of values in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 620, 340
LEFT, RIGHT, TOP, BOTTOM = 76, 14, 14, 46


@dataclass(frozen=True)
class Frame:
    """The data ranges that fill a chart.

    Attributes:
        x: lower and upper end of the horizontal axis.
        y: lower and upper end of the vertical axis.
    """

    x: tuple[float, float]
    y: tuple[float, float]

    def px(self, x: float) -> float:
        """The horizontal position of a value, in SVG units."""
        low, high = self.x
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (x - low) / ((high - low) or 1.0), 1)

    def py(self, y: float) -> float:
        """The vertical position of a value, in SVG units."""
        low, high = self.y
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low), 1)

    def path(self, xs: Iterable[float], ys: Iterable[float]) -> str:
        """The points of a line, as SVG's attribute `points`."""
        return " ".join(f"{self.px(x)},{self.py(y)}" for x, y in zip(xs, ys, strict=True))

    def across(self, y: float, kind: str) -> str:
        """A horizontal line across the whole chart; `kind` is its class in the page's style sheet."""
        place = self.py(y)
        return f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place}" y2="{place}"/>'

    def axes(self, x_title: str, x_ticks: Sequence[float], y_title: str, y_ticks: Sequence[float]) -> list[str]:
        """Grid lines, the ticks' numbers, and both titles."""
        parts = [self.across(y, "axis") for y in y_ticks]
        parts += [f'<text x="{LEFT - 6}" y="{self.py(y) + 4}" text-anchor="end">{y:g}</text>' for y in y_ticks]
        below, middle = HEIGHT - BOTTOM + 17, LEFT + (WIDTH - LEFT - RIGHT) / 2
        parts += [f'<text x="{self.px(x)}" y="{below}" text-anchor="middle">{x:,g}</text>' for x in x_ticks]
        parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text>')
        turned = f'transform="translate(14 {HEIGHT / 2 - 15}) rotate(-90)"'
        return [*parts, f'<text {turned} text-anchor="middle">{escape(y_title)}</text>']


def svg(parts: Iterable[str], said: str) -> Markup:
    """The chart, from parts in which every foreign text is escaped.

    Args:
        parts: the chart's elements.
        said: what the chart shows, for readers who cannot see it.
    """
    return Markup(  # noqa: S704 - numbers, and texts that are escaped
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>'
    )

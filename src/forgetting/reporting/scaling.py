"""An adapter at several scales as one self-contained HTML page: the curve, the budget, and a table of the numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from ..display.numbers import fixed
from .capabilities_chart import nice
from .measurement import environment

if TYPE_CHECKING:
    from ..measuring.scaling import Scaling

WIDTH, HEIGHT = 620, 340
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 14, 46


def render(found: Scaling) -> str:
    """The HTML page; equal results give equal text."""
    chosen = found.chosen
    rows = [
        [
            f"{point.scale:g}",
            *(
                cell
                for mean in (point.forgetting, point.task_loss, point.cost)
                if mean is not None
                for cell in (fixed(mean.value), mean.se_text)
            ),
        ]
        for point in found.points
    ]
    scale = None if chosen is None else f"{chosen.scale:g}"
    return environment().get_template("scaling.html").render(found=found, chart=chart(found), rows=rows, scale=scale)


def chart(found: Scaling) -> Markup:
    """An SVG chart of forgetting against scale, with the 95 % band, the measured points and the budget's line."""
    scales = np.linspace(0, 1, 81)
    curve = [np.asarray(part, float) for part in found.curve(scales)]
    ends = [end for p in found.points for end in (p.forgetting.value, *p.forgetting.interval()) if math.isfinite(end)]
    most = max([*ends, 0.0 if found.budget is None else found.budget])
    ticks = nice(0.0, most or 1.0)
    low, high = min(0.0, *ends), ticks[-1]

    def px(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * x, 1)

    def py(y: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low), 1)

    def path(values: Any, xs: Any) -> str:
        return " ".join(f"{px(x)},{py(y)}" for x, y in zip(xs, values, strict=True))

    across = f'x1="{LEFT}" x2="{WIDTH - RIGHT}"'
    parts = [f'<line class="axis" {across} y1="{py(y)}" y2="{py(y)}"/>' for y in ticks]
    parts += [f'<text x="{LEFT - 6}" y="{py(y) + 4}" text-anchor="end">{y:g}</text>' for y in ticks]
    parts += [
        f'<text x="{px(x)}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{x:g}</text>'
        for x in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts.append(f'<text x="{px(0.5)}" y="{HEIGHT - 6}" text-anchor="middle">scale of the adapter</text>')
    turned = f'transform="translate(14 {HEIGHT / 2 - 15}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">forgetting (nats/token)</text>')
    if np.isfinite(curve[1]).all():
        outline = f"{path(curve[1], scales)} {path(curve[2][::-1], scales[::-1])}"
        parts.append(f'<polygon class="band" points="{outline}"/>')
    parts.append(f'<polyline class="curve" points="{path(curve[0], scales)}"/>')
    if found.budget is not None:
        parts.append(f'<line class="budget" {across} y1="{py(found.budget)}" y2="{py(found.budget)}"/>')
    for point in found.points:
        mean = point.forgetting
        said = escape(f"scale {point.scale:g}: {fixed(mean.value)} ± {mean.se_text}")
        kind = "chosen" if point is found.chosen else "point"
        centre = f'cx="{px(point.scale)}" cy="{py(mean.value)}"'
        parts.append(f'<circle class="{kind}" {centre} r="4.5"><title>{said}</title></circle>')
    body, said = "".join(parts), escape(found.sentence())
    return Markup(  # noqa: S704 - numbers, and texts that are escaped above
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{body}</svg>'
    )

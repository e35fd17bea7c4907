"""The checkpoints of a run as one self-contained HTML page: the curve, and every number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from ..display.numbers import finite, fixed
from .capabilities_chart import nice
from .measurement import environment
from .svg import Frame, svg

if TYPE_CHECKING:
    from ..measuring.checkpoint_curve import CheckpointCurve

MOST_TICKS = 8
"""Most steps that are written below the curve."""


def render(curve: CheckpointCurve) -> str:
    """The HTML page; equal curves give equal text."""
    rows = [(row, curve.cells(row)) for row in curve.rows]
    page = environment().get_template("checkpoints.html")
    return page.render(curve=curve, first=curve.first, rows=rows, chart=chart(curve))


def chart(curve: CheckpointCurve) -> Markup:
    """An SVG chart of forgetting against steps with 95 % intervals; the noise floor, if measured, is a band."""
    means = [row.forgetting for row in curve.rows]
    ends = [end for mean in means for end in (mean.value, *mean.interval()) if math.isfinite(end)]
    ticks = nice(0.0, max(0.0, *ends) or 1.0)
    steps = [row.step for row in curve.rows]
    least = min(0.0, *ends)
    frame = Frame((0.0, max(1.05 * steps[-1], 1.0)), (least - 0.05 * (ticks[-1] - least) * (least < 0), ticks[-1]))
    every = math.ceil(len(steps) / MOST_TICKS)
    parts = frame.axes("update steps", steps[::-1][::every], "forgetting (nats/token)", ticks)
    floor = curve.floor
    if floor is not None and finite(floor.high):
        low, high = max(floor.low, frame.y[0]), min(floor.high, frame.y[1])
        corners = frame.path([*frame.x, *frame.x[::-1]], [low, low, high, high])
        parts.append(f'<polygon class="band" points="{corners}"><title>noise floor</title></polygon>')
    parts.append(f'<polyline class="curve" points="{frame.path(steps, [mean.value for mean in means])}"/>')
    for row in curve.rows:
        mean, x = row.forgetting, frame.px(row.step)
        low, high = mean.interval()
        if math.isfinite(high - low):
            parts.append(f'<line class="whisker" x1="{x}" x2="{x}" y1="{frame.py(low)}" y2="{frame.py(high)}"/>')
        said = escape(f"step {row.step:,}: {fixed(mean.value)} ± {mean.se_text} {curve.remark(row)}".strip())
        kind = "point" if not curve.remark(row) else "unsure"
        parts.append(
            f'<circle class="{kind}" cx="{x}" cy="{frame.py(mean.value)}" r="4.5"><title>{said}</title></circle>'
        )
    return svg(parts, curve.sentence())

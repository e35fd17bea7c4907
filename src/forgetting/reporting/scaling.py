"""An adapter at several scales as one self-contained HTML page: the curve, the budget, and a table of the numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape

from ..display.numbers import fixed
from .capabilities_chart import nice
from .measurement import environment
from .svg import Frame, svg

if TYPE_CHECKING:
    from ..measuring.scaling import Scaling


def render(found: Scaling) -> str:
    """The HTML page; equal results give equal text."""
    chosen = found.chosen
    rows = [
        [
            f"{point.scale:g}",
            *(
                f"{fixed(mean.value)} ±\N{NO-BREAK SPACE}{mean.se_text}"  # on a phone the line breaks before ±
                for mean in (point.forgetting, point.task_loss, point.cost)
                if mean is not None
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
    ticks = nice(0.0, max([*ends, 0.0 if found.budget is None else found.budget]) or 1.0)
    frame = Frame((0.0, 1.0), (min(0.0, *ends), ticks[-1]))
    parts = frame.axes("scale of the adapter", (0, 0.25, 0.5, 0.75, 1), "forgetting (nats/token)", ticks)
    if np.isfinite(curve[1]).all():
        outline = f"{frame.path(scales, curve[1])} {frame.path(scales[::-1], curve[2][::-1])}"
        parts.append(f'<polygon class="band" points="{outline}"/>')
    parts.append(f'<polyline class="curve" points="{frame.path(scales, curve[0])}"/>')
    if found.budget is not None:
        parts.append(frame.across(found.budget, "budget"))
    for point in found.points:
        mean = point.forgetting
        said = escape(f"scale {point.scale:g}: {fixed(mean.value)} ± {mean.se_text}")
        kind = "chosen" if point is found.chosen else "point"
        centre = f'cx="{frame.px(point.scale)}" cy="{frame.py(mean.value)}"'
        parts.append(f'<circle class="{kind}" {centre} r="4.5"><title>{said}</title></circle>')
    return svg(parts, found.sentence())

"""What `scale` returns: forgetting and the task's loss at an adapter's scales, and the scale that meets a budget."""

from __future__ import annotations

import html
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..config.arguments import checked
from ..display.charts import Chart, floats, marker, plain_layout, plotly_figure
from ..display.numbers import fixed
from ..display.tables import Result, Shown
from ..errors import UsageError
from ..models.scaled_adapter import ScaledAdapter
from . import quantities
from .estimate import Mean
from .verdict import Verdict, judge

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Scales that are always measured."""


@dataclass(frozen=True)
class Point:
    """The measurement at one scale.

    Attributes:
        scale: scale of the adapter's effect: 0 is the base model, 1 the unchanged adapter.
        forgetting: excess forgetting on the general text, nats/token.
        task_loss: loss on the task's text; None without one.
        cost: task_loss minus that at scale 1, paired token by token.
    """

    scale: float
    forgetting: Mean
    task_loss: Mean | None = None
    cost: Mean | None = None


@dataclass(frozen=True)
class Scaling(Result):
    """An adapter at several scales.

    Attributes:
        base, tuned, text: what was compared, on what.
        task_text: the task's text; None without one.
        points: by scale, from 0 to 1.
        budget: allowed excess forgetting, nats/token; None if no scale was searched for.
        confidence: confidence of the upper bound that must be within it.
        falls: two neighbouring scales of which the larger forgets less, by more than chance; None if there are none.
        dtype: dtype of the base model.
        notices: what a reader of the numbers should know.
        adapter: the adapter, for `write`.
    """

    base: str
    tuned: str
    text: str
    task_text: str | None
    points: tuple[Point, ...]
    budget: float | None
    confidence: float
    falls: tuple[float, float] | None
    dtype: str
    notices: tuple[str, ...]
    adapter: ScaledAdapter = field(repr=False)

    @property
    def chosen(self) -> Point | None:
        """The largest measured scale such that all measured ones up to it are within the budget; None without a budget.

        At scale 0, the base model itself, nothing is forgotten.
        """
        if self.budget is None:
            return None
        found = self.points[0]
        for point in self.points[1:]:
            if self.judged(point).high > self.budget:
                break
            found = point
        return found

    def judged(self, point: Point) -> Verdict:
        """The verdict on a point.

        Raises:
            UsageError: there is no budget.
        """
        if self.budget is None:
            raise UsageError("judged: needs a budget")
        return judge(point.forgetting, self.budget, self.confidence)

    @checked
    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the adapter at the chosen scale, in PEFT's format.

        Args:
            folder: a new folder.

        Raises:
            UsageError: there is no budget, no scale above 0 is within it, or the folder cannot be written.
        """
        chosen = self.chosen
        if chosen is None:
            raise UsageError("write: needs a budget, to choose the scale")
        if chosen.scale == 0:
            raise UsageError(f"write: {self.sentence()}; nothing was written")
        self.adapter.write(Path(folder), chosen.scale)

    def curve(self, scales: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Forgetting between the measured scales, and its 95 % band: PCHIP through values and interval ends.

        Args:
            scales: [n] between 0 and 1.

        Returns:
            Values, lower and upper ends; the ends are NaN if standard errors are unknown.
        """
        from scipy.interpolate import PchipInterpolator

        at = [point.scale for point in self.points]
        means = [point.forgetting for point in self.points]
        values, lows, highs = ([m.value for m in means], *zip(*(m.interval() for m in means), strict=True))

        def through(y: Any) -> NDArray[Any]:
            known = np.isfinite(y).all()
            found: NDArray[Any] = PchipInterpolator(at, y)(scales) if known else np.full(len(scales), math.nan)
            return found

        return through(values), through(lows), through(highs)

    def sentence(self) -> str:
        """The answer in words."""
        chosen, budget = self.chosen, self.budget
        whole = self.points[-1].forgetting
        if chosen is None or budget is None:
            return f"at scale 1 forgetting is {fixed(whole.value)} ± {whole.se_text} nats/token; no budget was given"
        if chosen.scale == 1:
            return (
                f"the adapter is within the budget {budget:g} without scaling: forgetting {fixed(whole.value)} ± "
                f"{whole.se_text} nats/token, at most {fixed(self.judged(chosen).high)}"
            )
        if chosen.scale == 0:
            least = self.points[1]
            forgetting = f"{fixed(least.forgetting.value)} ± {least.forgetting.se_text}"
            return (
                f"no scale except 0, the base model itself, is within the budget {budget:g}: at scale {least.scale:g}, "
                f"the smallest measured, forgetting is {forgetting} nats/token, at most "
                f"{fixed(self.judged(least).high)}"
            )
        mean = chosen.forgetting
        said = (
            f"scale {chosen.scale:g} is within the budget {budget:g}: forgetting {fixed(mean.value)} ± "
            f"{mean.se_text} nats/token, at most {fixed(self.judged(chosen).high)}; at scale 1 it is "
            f"{fixed(whole.value)} ± {whole.se_text}"
        )
        if chosen.cost is None:
            return said
        change = f"{fixed(abs(chosen.cost.value))} ± {chosen.cost.se_text} nats/token"
        if chosen.cost.value < 0:
            return f"{said}; on the task it is {change} better than scale 1"
        return f"{said}; it costs {change} on the task"

    def remarks(self) -> list[str]:
        """A notice if forgetting falls from one scale to the next, as a list."""
        if self.falls is None:
            return []
        one, other = self.falls
        limit = "" if self.budget is None else "; some larger scales may also be within the budget"
        return [f"forgetting does not always grow with the scale: it falls from scale {one:g} to {other:g}{limit}"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: a row per scale, the scale chosen, and what it costs."""
        chosen = self.chosen
        return {
            "base": self.base,
            "tuned": self.tuned,
            "text": self.text,
            "task_text": self.task_text,
            "dtype": self.dtype,
            "budget": self.budget,
            "confidence": self.confidence,
            "scale": None if chosen is None else chosen.scale,
            "monotone": self.falls is None,
            "text_tokens": self.points[0].forgetting.n_tokens,
            "text_documents": self.points[0].forgetting.n_documents,
            "scales": [_row(point) for point in self.points],
            "sentence": self.sentence(),
            "notices": [*self.remarks(), *self.notices],
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per scale."""
        import pandas as pd

        return pd.DataFrame([_row(point) for point in self.points])

    def shown(self) -> list[Shown]:
        """The answer in words, and a row per scale."""
        first = self.points[0].forgetting
        on = f"{first.extent} of {self.text}"
        heading = [self.sentence(), f"{self.tuned} against {self.base}, {on}, {self.dtype}; nats/token"]
        columns = ("scale", "forgetting", "± se", *(("task loss", "± se", "cost", "± se") if self.task_text else ()))
        rows = []
        for point in self.points:
            cells = [f"{point.scale:g}", fixed(point.forgetting.value), point.forgetting.se_text]
            for mean in (point.task_loss, point.cost):
                cells += [] if mean is None else [fixed(mean.value), mean.se_text]
            rows.append(cells)
        return [Shown(heading, columns, rows, [*self.remarks(), *self.notices])]

    def figure(self) -> go.Figure:
        """Forgetting against the scale with its 95 % band and the budget, as a Plotly figure."""
        scales = np.linspace(0, 1, 101)
        values, lows, highs = self.curve(scales)
        line = {"type": "scatter", "mode": "lines", "x": floats(scales), "hoverinfo": "skip"}
        traces: list[dict[str, Any]] = [
            line | {"y": floats(lows), "line": {"width": 0}},
            line | {"y": floats(highs), "line": {"width": 0}, "fill": "tonexty", "fillcolor": "var(--band)"},
            line | {"y": floats(values), "line": {"color": "var(--line-fit)"}},
            {
                "type": "scatter",
                "mode": "markers",
                "x": floats(point.scale for point in self.points),
                "y": floats(point.forgetting.value for point in self.points),
                "marker": marker("var(--line-fit)") | {"size": 8},
            },
        ]
        layout = plain_layout("scale of the adapter", quantities.AXES["forgetting"])
        if self.budget is not None:
            ends = {"type": "line", "x0": 0, "x1": 1, "y0": self.budget, "y1": self.budget}
            layout["shapes"] = [ends | {"line": {"color": "var(--bad)", "dash": "dash"}}]
        title = html.escape(f"Forgetting of {self.tuned} against its scale")
        caption = "The band covers 95 %; the dashed line is the budget."
        return plotly_figure(Chart("scale", title, caption, self.sentence(), {"data": traces, "layout": layout}))


def _row(point: Point) -> dict[str, Any]:
    """A scale's numbers by column."""
    means = {"forgetting": point.forgetting, "task_loss": point.task_loss, "cost": point.cost}
    return {"scale": point.scale, **quantities.row({name: mean for name, mean in means.items() if mean is not None})}

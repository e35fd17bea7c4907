"""What `measure_checkpoints` returns: forgetting along a run, and how each checkpoint differs from the one before."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..display.charts import Chart, floats, marker, plain_layout, plotly_figure
from ..display.numbers import fixed, p_value, several, signed
from ..display.tables import Result, Shown
from . import quantities
from .estimate import Mean, holm
from .measurement import Measurement
from .noise import Floor
from .profile import two_sided_p
from .verdict import LEAST

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

LEVEL = 0.05
"""Holm-corrected p below which two neighbouring checkpoints differ."""


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint.

    Attributes:
        step: number of update steps.
        measurement: the measurement of its model against the base model.
        change: its excess forgetting minus that of the checkpoint before, nats/token, paired by token and clustered by
            document; None for the first one.
    """

    step: int
    measurement: Measurement = field(repr=False)
    change: Mean | None

    @property
    def forgetting(self) -> Mean:
        """Excess forgetting, nats/token."""
        return self.measurement.forgetting

    @property
    def told_from_zero(self) -> bool:
        """Whether the 95 % interval of its forgetting excludes 0; False if there is no interval."""
        low, high = self.forgetting.interval()
        return math.isfinite(high - low) and not low <= 0 <= high


@dataclass(frozen=True)
class CheckpointCurve(Result):
    """Checkpoints of one run, all measured on the same tokens against the same base model.

    Attributes:
        rows: the measured checkpoints, by step.
        wanted: the steps of all requested checkpoints, whether measured or not.
    """

    rows: tuple[CheckpointRow, ...]
    wanted: tuple[int, ...]

    @property
    def first(self) -> Measurement:
        """The measurement of the first checkpoint."""
        return self.rows[0].measurement

    @property
    def floor(self) -> Floor | None:
        """The noise floor of forgetting: in another dtype, or else with another batch size; None if not measured."""
        noise = self.first.noise
        return None if noise is None else (noise.dtype or noise.batch)["forgetting"]

    @property
    def p(self) -> dict[int, float]:
        """Two-sided p that nothing changed since the checkpoint before, by step; see `profile.two_sided_p`."""
        return {row.step: two_sided_p(row.change) for row in self.rows if row.change is not None}

    @property
    def p_holm(self) -> dict[int, float]:
        """`p` corrected for the number of changes; see `estimate.holm`."""
        return dict(zip(self.p, holm(list(self.p.values())), strict=True))

    @property
    def notices(self) -> tuple[str, ...]:
        """The notices of all checkpoints; a notice shared by all occurs once, without steps."""
        found: dict[str, list[int]] = {}
        for row in self.rows:
            for notice in row.measurement.notices:
                found.setdefault(notice, []).append(row.step)
        return tuple(
            said if len(steps) == len(self.rows) else f"step {', '.join(map(str, steps))}: {said}"
            for said, steps in found.items()
        )

    def sentence(self) -> str:
        """Forgetting at the last checkpoint and where it is largest, and how many changes differ from 0, in words."""
        last, most = self.rows[-1], max(self.rows, key=lambda row: row.forgetting.value)
        found = f"forgetting {_said(last.forgetting)} nats/token at step {last.step:,}"
        if most is not last:
            found += f"; the most, {_said(most.forgetting)}, at step {most.step:,}"
        tested = [p for p in self.p_holm.values() if math.isfinite(p)]
        if tested:
            changed = sum(p < LEVEL for p in tested)
            found += (
                f"; {changed} of {several(len(tested), 'change')} between neighbouring checkpoints can be "
                "distinguished from 0"
            )
        elif self.p:
            documents = several(last.forgetting.n_documents, "document")
            found += f"; {documents}, too few to test the changes between checkpoints (at least {LEAST})"
        return found

    def remark(self, row: CheckpointRow) -> str:
        """Whether a row's forgetting can be distinguished from 0 and from noise, in words; empty if it can."""
        if self.floor is not None and self.floor.holds(row.forgetting.value):
            return "within the noise floor"
        if not math.isfinite(row.forgetting.se):
            return "standard error unknown"
        return "" if row.told_from_zero else "not distinguishable from 0"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what was measured, and a row per checkpoint with the columns of `measure`."""
        row = self.first.to_dict()
        own = {"tuned", "sha256", "notices", "measure_seconds", *quantities.row(self.first.means)}
        done = {row.step for row in self.rows}
        return {
            **{name: value for name, value in row.items() if name not in own},
            "measure_seconds": round(sum(row.measurement.seconds for row in self.rows), 3),
            "checkpoints": self._rows(),
            "not_measured": [step for step in self.wanted if step not in done],
            "sentence": self.sentence(),
            "notices": list(self.notices),
        }

    def _rows(self) -> list[dict[str, Any]]:
        p, corrected = self.p, self.p_holm
        rows = []
        for one in self.rows:
            row: dict[str, Any] = {"step": one.step, "checkpoint": one.measurement.tuned}
            row |= quantities.row(one.measurement.means)
            row |= quantities.row({"forgetting_change": one.change or Mean(math.nan, math.nan, 0, 0)})
            chances = {"change_p": p.get(one.step, math.nan), "change_p_holm": corrected.get(one.step, math.nan)}
            row |= {name: value if math.isfinite(value) else None for name, value in chances.items()}
            rows.append(row | {"sha256": dict(one.measurement.sha256), "notices": list(one.measurement.notices)})
        return rows

    def to_frame(self) -> pd.DataFrame:
        """One row per checkpoint, by step."""
        import pandas as pd

        return pd.DataFrame(self._rows()).set_index("step").drop(columns=["sha256", "notices"])

    def shown(self) -> list[Shown]:
        """One row per checkpoint: its forgetting, the change since the one before with its p, agreement."""
        mean, first = self.first.forgetting, self.first
        count = several(len(self.wanted), "checkpoint")
        count = count if len(self.rows) == len(self.wanted) else f"{len(self.rows)} of {count}"
        heading = [
            f"{count} against {first.base} on {first.text}: {mean.extent}, {first.dtype}",
            "forgetting in nats/token; change: since the checkpoint before, paired by token; p corrected (Holm)",
        ]
        columns = ("step", "forgetting", "± se", "change", "± se", "p", "agreement", "")
        return [Shown(heading, columns, [self.cells(row) for row in self.rows], (self.sentence(), *self.notices))]

    def cells(self, row: CheckpointRow) -> tuple[str, ...]:
        """The cells of a checkpoint's row in the table."""
        change = row.change
        return (
            f"{row.step:,}",
            fixed(row.forgetting.value),
            row.forgetting.se_text,
            "–" if change is None else signed(change.value),
            "–" if change is None else change.se_text,
            "–" if change is None else p_value(self.p_holm[row.step]),
            f"{100 * row.measurement.means['agreement'].value:.1f} %",
            self.remark(row),
        )

    def figure(self) -> go.Figure:
        """Forgetting along the steps with 95 % intervals, as a Plotly figure."""
        means = [row.forgetting for row in self.rows]
        errors = {"type": "data", "array": floats(mean.bound(0.975) for mean in means), "color": "var(--ink)"}
        trace = {
            "type": "scatter",
            "mode": "lines+markers",
            "x": [row.step for row in self.rows],
            "y": floats(mean.value for mean in means),
            "error_y": errors | {"thickness": 1.4, "width": 5},
            "line": {"color": "var(--line-fit)"},
            "marker": marker("var(--line-fit)") | {"size": 8},
            "meta": {"series": "forgetting", "role": "points"},
        }
        layout = plain_layout(quantities.AXES["step"], quantities.AXES["forgetting"])
        title = f"Forgetting along the checkpoints, against {self.first.base}"
        spec = {"data": [trace], "layout": layout}
        return plotly_figure(
            Chart("checkpoints", html.escape(title), "Bars are 95 % intervals.", self.sentence(), spec)
        )


def _said(mean: Mean) -> str:
    return f"{fixed(mean.value)} ± {mean.se_text}"

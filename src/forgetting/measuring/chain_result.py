"""What `chain` returns: the forgetting after each step, and each step's own part, paired token by token."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..display.charts import Chart, floats, plain_layout, plotly_figure
from ..display.numbers import fixed, p_value, several, signed
from ..display.tables import Result, Shown
from . import quantities
from .estimate import Mean, clustered_mean, holm
from .measurement import Measurement
from .profile import two_sided_p
from .verdict import LEAST
from .where import Where, where

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

LEVEL = 0.05
"""Holm-corrected p below which a step differs from the one before."""
ROUNDING = 1e-5
"""nats/token: a smaller part is not worth mentioning, however precisely it is known."""
PARTS = {"forgetting": "forgetting", "kl": "kl", "agreement": "agreement", "data_loss_tuned": "data_loss"}
"""Quantities that are also given per step, and their suffix after `step_` in columns."""


@dataclass(frozen=True)
class ChainStep:
    """One step of a chain.

    Attributes:
        name: its name.
        model: the folder, Hub id or file.
        kind: what it is, in words: `adapter on base`, `model, 4 bits`, `GGUF`.
        so_far: the measurement of its model against the base model.
        parts: by column suffix after `step_`, the mean difference from the step before (for the first step, from the
            base model). Paired by token, so that what two steps share cancels; clustered by document.
        sha256: hash of each weight file, by name.
        notices: notices about this step.
    """

    name: str
    model: str
    kind: str
    so_far: Measurement = field(repr=False)
    parts: Mapping[str, Mean]
    sha256: Mapping[str, str]
    notices: tuple[str, ...]

    @property
    def part(self) -> Mean:
        """Excess forgetting that this step added, nats/token."""
        return self.parts["forgetting"]


@dataclass(frozen=True)
class Chain(Result):
    """Steps from a base model to the deployed model, all measured on the same tokens against the same base model.

    Attributes:
        steps: in order.
        sha256: hash of each of the base model's weight files, by name.
        notices: notices about the base model and the text.
    """

    steps: tuple[ChainStep, ...]
    sha256: Mapping[str, str]
    notices: tuple[str, ...]

    @property
    def total(self) -> Mean:
        """Excess forgetting of the last step's model: the sum of all parts."""
        return self.steps[-1].so_far.forgetting

    @property
    def p(self) -> dict[str, float]:
        """Two-sided p that a step changed no forgetting, by the step's name; see `profile.two_sided_p`."""
        return {step.name: two_sided_p(step.part) for step in self.steps}

    @property
    def p_holm(self) -> dict[str, float]:
        """`p` corrected for the number of steps; see `estimate.holm`."""
        return dict(zip(self.p, holm(list(self.p.values())), strict=True))

    @property
    def lost_most(self) -> ChainStep | None:
        """The step with the largest part among those that significantly added forgetting; None if none did."""
        corrected = self.p_holm
        found = [step for step in self.steps if step.part.value > ROUNDING and corrected[step.name] < LEVEL]
        return max(found, key=lambda step: step.part.value, default=None)

    def change(self, place: int) -> NDArray[Any]:
        """[N] what the step at this index added to the excess forgetting of each token, nats."""
        after = np.asarray(self.steps[place].so_far.change, np.float64)
        return after if place == 0 else after - self.steps[place - 1].so_far.change

    def same(self, place: int) -> bool:
        """Whether the step at this index changed no token's forgetting by more than rounding."""
        return bool(np.abs(self.change(place)).max(initial=0.0) <= ROUNDING)

    def where(self, place: int) -> Where:
        """Where the step at this index forgot: by position, token frequency, document and token, and passages."""
        so_far = self.steps[place].so_far
        return where(so_far.windows, self.change(place), so_far.argmax)

    def sentence(self) -> str:
        """A sentence that says which step lost most."""
        most = self.lost_most
        total = f"{fixed(self.total.value)} ± {self.total.se_text} nats/token"
        if not any(map(math.isfinite, self.p.values())):
            documents = several(self.total.n_documents, "document")
            return f"{documents}, too few to test the steps (at least {LEAST}); after all steps forgetting is {total}"
        if most is None:
            return f"no step increases forgetting by more than its error; after all steps it is {total}"
        part = f"{fixed(most.part.value)} ± {most.part.se_text}"
        beside = self._beside(most)
        if most.part.value > self.total.value:  # later steps reduced forgetting again
            return f"'{most.name}' lost most: {part} nats/token{beside}; after all steps it is {total}"
        return f"'{most.name}' lost most: {part} of {total} after all steps{beside}"

    def _beside(self, most: ChainStep) -> str:
        """Whether the largest part differs significantly from the next one."""
        others = [step for step in self.steps if step is not most]
        if not others:
            return ""
        second = max(others, key=lambda step: step.part.value)
        one, other = (self.change(self.steps.index(step)) for step in (most, second))
        p = two_sided_p(clustered_mean(one - other, most.so_far.windows.token_documents()))
        if p < LEVEL:
            return f", more than '{second.name}' (p {p_value(p)})"
        return f"; not significantly more than '{second.name}' (p {p_value(p)})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what was measured, and a row per step with the columns of `measure`."""
        first = self.steps[0].so_far.to_dict()
        shared = ("base", "text", "text_tokens", "text_documents", "documents_in_text", "context", "batch_tokens")
        most = self.lost_most
        head = {name: first[name] for name in shared}
        head |= {"base_dtype": first["dtype"], "base_sha256": dict(self.sha256)}
        return {
            **head,
            "lost_most": None if most is None else most.name,
            "steps": self._rows(),
            "measure_seconds": round(sum(step.so_far.seconds for step in self.steps), 3),
            "notices": list(self.notices),
        }

    def _rows(self) -> list[dict[str, Any]]:
        p, corrected = self.p, self.p_holm
        rows = []
        for step in self.steps:
            row: dict[str, Any] = {"name": step.name, "model": step.model, "kind": step.kind}
            row |= quantities.row(step.so_far.means)
            row |= quantities.row({f"step_{name}": mean for name, mean in step.parts.items()})
            chances = {"step_p": p[step.name], "step_p_holm": corrected[step.name]}
            row |= {name: value if math.isfinite(value) else None for name, value in chances.items()}
            rows.append(row | {"sha256": dict(step.sha256), "notices": list(step.notices)})
        return rows

    def to_frame(self) -> pd.DataFrame:
        """One row per step."""
        import pandas as pd

        return pd.DataFrame(self._rows()).set_index("name").drop(columns=["sha256", "notices"])

    def shown(self) -> list[Shown]:
        """One row per step: the forgetting so far, the step's part, p, agreement; and which step lost most."""
        mean, first = self.total, self.steps[0].so_far
        heading = [
            f"{several(len(self.steps), 'step')} from {first.base} on {first.text}: {mean.extent}, {first.dtype}",
            "forgetting in nats/token; of this step: change from the one before, paired by token; p corrected (Holm)",
        ]
        corrected = self.p_holm
        rows = [
            (
                step.name,
                step.kind,
                fixed(step.so_far.forgetting.value),
                step.so_far.forgetting.se_text,
                signed(step.part.value),
                step.part.se_text,
                p_value(corrected[step.name]),
                f"{100 * step.so_far.means['agreement'].value:.1f} %",
            )
            for step in self.steps
        ]
        columns = ("step", "what", "so far", "± se", "of this step", "± se", "p", "agreement")
        return [Shown(heading, columns, rows), Shown([self.sentence()], notes=self.all_notices)]

    @property
    def all_notices(self) -> tuple[str, ...]:
        """The chain's notices, and those of each step with its name."""
        return (*self.notices, *(f"step '{step.name}': {said}" for step in self.steps for said in step.notices))

    def figure(self) -> go.Figure:
        """A waterfall chart as a Plotly figure: each step's part on top of the forgetting before it."""
        parts = [step.part for step in self.steps]
        after = [step.so_far.forgetting.value for step in self.steps]
        trace = {
            "type": "bar",
            "x": [step.name for step in self.steps],
            "y": floats(part.value for part in parts),
            "base": floats([0.0, *after[:-1]]),
            "error_y": {"type": "data", "array": floats(part.se for part in parts), "color": "var(--ink)", "width": 3},
            "marker": {"color": "var(--line-fit)"},
            "meta": {"series": "forgetting", "role": "bars"},
        }
        layout = plain_layout("", quantities.AXES["forgetting"])
        layout["xaxis"]["type"] = "category"
        title = f"What each step from {self.steps[0].so_far.base} forgot"
        alt = "; ".join(f"{step.name} {signed(step.part.value)} ± {step.part.se_text}" for step in self.steps)
        caption = "Each bar begins at the forgetting before the step; whiskers are one standard error of its part."
        return plotly_figure(Chart("chain", html.escape(title), caption, alt, {"data": [trace], "layout": layout}))


def parts_of(
    after: Mapping[str, NDArray[Any]], before: Mapping[str, NDArray[Any]] | None, documents: NDArray[Any]
) -> dict[str, Mean]:
    """What a step changed, by the columns of PARTS.

    Args:
        after: [N] values of each quantity with the step's model.
        before: the same for the step before; None means the base model.
        documents: [N] the document of each token.
    """
    if before is None:
        zero = np.zeros(len(documents))
        before = {"forgetting": zero, "kl": zero, "agreement": zero + 1, "data_loss_tuned": after["data_loss_base"]}
    return {
        column: clustered_mean(after[name].astype(np.float64) - before[name].astype(np.float64), documents)
        for name, column in PARTS.items()
    }

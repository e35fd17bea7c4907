"""What `measure` and `check` return, and their settings."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..config.arguments import checked
from ..data import array_cache
from ..data.windows import Windows
from ..display.charts import Chart, floats, plain_layout, plotly_figure
from ..display.numbers import fixed, several
from ..display.tables import Result, Shown
from ..errors import UsageError, did_you_mean
from ..models.loading import Placement
from . import quantities
from .estimate import Mean
from .noise import NoiseFloor
from .task import Improvement, Outcome, judge_task, outcome
from .verdict import Verdict
from .where import Group, Where, where

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Settings:
    """How to measure. Defaults give the paper's measurement.

    Attributes:
        context: tokens per window; None means 512, or what the base model was built for if that is less.
        tolerance: stop when the standard error of the excess forgetting is at most this, nats/token; None measures
            all of the text.
        seed: seed of the order of documents under a tolerance.
        noise_floor: also measure the base model against itself.
        revision: Hub revision of the base model.
        dtype: `auto` (as stored), float32, bfloat16, float16.
        device: `auto`, cpu, cuda, ...
        bits: bits to quantise the models to on loading; None means as stored.
        placement: how models are spread over devices.
        trust_remote_code: run Python code shipped with the models.
        batch_tokens: tokens per forward pass; affects only memory and rounding; None means 512 on a CPU and 8,192
            elsewhere.
        cache_dir: where base targets, and tokens of large texts, are cached; None caches nothing.
    """

    context: int | None = None
    tolerance: float | None = None
    seed: int = 0
    noise_floor: bool = False
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    bits: Literal[4, 8] | None = None
    placement: Placement = field(default_factory=Placement)
    trust_remote_code: bool = False
    batch_tokens: int | None = None
    cache_dir: Path | None = field(default_factory=array_cache.default_folder)


@dataclass(frozen=True)
class Measurement(Result):
    """The result of one comparison.

    Attributes:
        base, tuned, text: what was compared, on what.
        means: each of `quantities.PAIR` by name, with its clustered standard error.
        documents_in_text: number of documents in the text; with a tolerance, fewer may be measured.
        context: tokens per window; None if windows were given.
        settings: how it was measured.
        dtype: dtype of the base model.
        seconds: time spent measuring; loading models and reading a text do not count.
        noise: the noise floor, if requested.
        notices: what a reader of the numbers should know.
        windows: the windows measured.
        change: [N] excess forgetting of each predicted token.
        argmax: [N] the base model's top tokens.
        tokenizer: for showing tokens; may be None.
        gain: the base model's ground-truth loss minus the tuned model's, paired token by token.
        sha256: hash of each of the tuned model's weight files, by name; empty if the model was given loaded.
    """

    base: str
    tuned: str
    text: str
    means: dict[str, Mean]
    documents_in_text: int
    context: int | None
    settings: Settings
    dtype: str
    seconds: float
    noise: NoiseFloor | None
    notices: tuple[str, ...]
    windows: Windows = field(repr=False)
    change: NDArray[np.float32] = field(repr=False)
    argmax: NDArray[np.int32] = field(repr=False)
    tokenizer: Any = field(repr=False, default=None)
    gain: Mean | None = field(repr=False, default=None)
    sha256: Mapping[str, str] = field(repr=False, default_factory=dict)

    @property
    def forgetting(self) -> Mean:
        """Excess forgetting, nats/token."""
        return self.means["forgetting"]

    @property
    def meaning(self) -> str:
        """A sentence on what the numbers mean for the base model's own top tokens."""
        kept = f"{100 * self.means['agreement'].value:.1f} %"
        ratio = math.exp(-self.forgetting.value)
        return (
            f"in words: at {kept} of positions the tuned model's top token is the base model's; on average it gives "
            f"the base model's top token {ratio:.3g} times the base model's probability (geometric mean)"
        )

    def improvement(self, confidence: float, *, of: int = 1) -> Improvement:
        """The verdict on this text as the text of a task; see `task.judge_task`.

        Raises:
            UsageError: an invalid confidence, or a measurement made without the gain.
        """
        if self.gain is None:
            raise UsageError("improvement: this measurement does not contain the gain")
        losses = {"before": self.means["data_loss_base"], "after": self.means["data_loss_tuned"]}
        return judge_task(self.gain, confidence, of=of, text=self.text, notices=self.notices, **losses)

    def to_dict(self) -> dict[str, Any]:
        """One flat object with the column names of `measure --json`; an unknown standard error is None."""
        row: dict[str, Any] = {"base": self.base, "tuned": self.tuned, "text": self.text}
        row |= quantities.row(self.means)
        row |= {
            "text_tokens": self.forgetting.n_tokens,
            "text_documents": self.forgetting.n_documents,
            "documents_in_text": self.documents_in_text,
            "context": self.context,
            "dtype": self.dtype,
            "tolerance": self.settings.tolerance,
            "seed": self.settings.seed,
            "batch_tokens": self.settings.batch_tokens,
            "measure_seconds": round(self.seconds, 3),
            "notices": list(self.notices),
        }
        if self.sha256:
            row["sha256"] = dict(self.sha256)
        if self.settings.trust_remote_code:
            row["trust_remote_code"] = True  # the models' code was run
        if self.noise is not None:
            row |= self.noise.row()
        return row

    def to_frame(self) -> pd.DataFrame:
        """One row per quantity: value, standard error, unit."""
        import pandas as pd

        rows = {q.name: (self.means[q.name].value, self.means[q.name].se, q.unit) for q in quantities.SHOWN}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "se", "unit"]).rename_axis("quantity")

    def shown(self) -> list[Shown]:
        """What was compared on how much text, every quantity with its standard error, notices."""
        mean = self.forgetting
        extent = mean.extent
        if mean.n_documents != self.documents_in_text:
            whole = several(self.documents_in_text, "document")
            extent = f"{several(mean.n_tokens, 'token')} in {mean.n_documents:,} of {whole}"
        heading = f"{self.tuned} against {self.base} on {self.text}: {extent}, {self.dtype}"
        rows = [
            (q.title, fixed(self.means[q.name].value), self.means[q.name].se_text, q.note) for q in quantities.SHOWN
        ]
        if self.noise is not None:
            rows += self.noise.shown()
        table = Shown([heading], ("nats/token", "value", "± se", ""), rows, self.notices)
        return [table, Shown([self.meaning])] if math.isfinite(self.forgetting.value) else [table]

    def where(self) -> Where:
        """Where the model forgot: by position, token frequency, document and token, and passages token by token."""
        return where(self.windows, self.change, self.argmax)

    @checked
    def figure(self, by: Literal["position", "frequency"] = "position") -> go.Figure:
        """Forgetting by position in the window, or by how common the true token is, as a Plotly figure.

        Args:
            by: `position` or `frequency`.

        Raises:
            UsageError: anything else.
        """
        found = self.where()
        charts = {
            "position": ("tokens before the predicted one", found.by_position),
            "frequency": ("times that the true token occurs in the text", found.by_frequency),
        }
        if by not in charts:
            raise UsageError(f"figure: by '{by}'; {did_you_mean(str(by), charts)}")
        return plotly_figure(_bars(f"Forgetting of {self.tuned} by {by}", *charts[by]))


@dataclass(frozen=True)
class CheckResult(Verdict, Result):
    """A verdict on a forgetting budget, and the measurement behind it.

    Attributes:
        measurement: what was measured.
        task: whether the task improved; None if no text of it was given.
    """

    measurement: Measurement = field(repr=False)
    task: Improvement | None = None

    @property
    def outcome(self) -> Outcome:
        """The verdict on forgetting and on the task in one word; see `task.outcome`."""
        return outcome(self.verdict, self.task)

    def exit_code(self, *, strict: bool = False, allow_undecided: bool = False) -> int:
        """The larger of the two verdicts' exit codes."""
        how = {"strict": strict, "allow_undecided": allow_undecided}
        return max(super().exit_code(**how), 0 if self.task is None else self.task.exit_code(**how))

    def sentences(self) -> list[str]:
        """Both verdicts in words: on the task, and on forgetting."""
        return [*([] if self.task is None else [self.task.sentence()]), self.sentence()]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the verdict with its bounds, and the measurement."""
        judged: dict[str, Any] = {} if self.task is None else {"outcome": self.outcome, "task": self.task.to_dict()}
        judged |= {"verdict": self.verdict, "budget": self.budget, "confidence": self.confidence}
        bounds = {"forgetting_low": self.low, "forgetting_high": self.high}
        return {
            **judged,
            **{k: v if math.isfinite(v) else None for k, v in bounds.items()},
            **self.measurement.to_dict(),
        }

    def to_frame(self) -> pd.DataFrame:
        """The measurement's frame."""
        return self.measurement.to_frame()

    def shown(self) -> list[Shown]:
        """The verdict in words, and the measurement."""
        return [Shown(self.sentences()), *self.measurement.shown()]


def _bars(title: str, x_title: str, groups: Sequence[Group]) -> Chart:
    """A bar chart of means, with whiskers of one standard error."""
    errors = floats(group.change.se for group in groups)
    trace = {
        "type": "bar",
        "x": [group.label for group in groups],
        "y": floats(group.change.value for group in groups),
        "error_y": {"type": "data", "array": errors, "color": "var(--ink)", "thickness": 1.2, "width": 3},
        "marker": {"color": "var(--line-fit)"},
        "meta": {"series": "forgetting", "role": "bars"},
    }
    layout = plain_layout(x_title, quantities.AXES["forgetting"])
    layout["xaxis"]["type"] = "category"
    return Chart(
        "where", html.escape(title), "Whiskers are one standard error.", title, {"data": [trace], "layout": layout}
    )

"""What a model forgot on several texts: one measurement per text, with p-values corrected for their number."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..config.arguments import checked
from ..display.charts import Chart, floats, marker, plain_layout, plotly_figure
from ..display.numbers import fixed, p_value, several
from ..display.tables import Result, Shown
from ..errors import UsageError, did_you_mean
from . import quantities
from .estimate import Mean, holm
from .measurement import CheckResult, Measurement
from .task import Improvement, Outcome, outcome
from .verdict import LEAST, Verdict, judge

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Profile(Result):
    """Measurements of one pair of models on several texts.

    Each is a paired comparison, token by token, with a standard error clustered by document. Texts are not pooled.

    Attributes:
        measurements: the measurements by the text's name, in the order given.
        task: the measurement of the task's held-out text, which is not among them; None if no such text was given.
        probes: the measurements of the base model's own answers, by kind of prompt; None if they were not measured.
            Their p-values are corrected separately, so those of the texts do not depend on them.
    """

    measurements: dict[str, Measurement]
    task: Measurement | None = None
    probes: Profile | None = None

    @property
    def first(self) -> Measurement:
        """The measurement of the first text."""
        return next(iter(self.measurements.values()))

    @property
    def everything(self) -> dict[str, Measurement]:
        """The measurements of the texts and then the probes; if both have the same name, that of the text."""
        return self.measurements | {k: v for k, v in self.answers.items() if k not in self.measurements}

    @property
    def answers(self) -> dict[str, Measurement]:
        """The measurements in `probes`; empty if there are none."""
        return {} if self.probes is None else self.probes.measurements

    @property
    def p(self) -> dict[str, float]:
        """Two-sided p of no excess forgetting on each text; see `two_sided_p`."""
        return {name: two_sided_p(one.forgetting) for name, one in self.measurements.items()}

    @property
    def p_holm(self) -> dict[str, float]:
        """`p` corrected for the number of texts by Holm's method (`estimate.holm`)."""
        return dict(zip(self.measurements, holm(list(self.p.values())), strict=True))

    @checked
    def check(self, budget: float | Mapping[str, float], confidence: float = 0.95) -> ProfileCheck:
        """Judge each text against a budget.

        Args:
            budget: allowed excess forgetting, nats/token: one number for all texts, or numbers by the name of a text or
                of a kind in `probes`; texts without a number are not judged.
            confidence: of all verdicts together, including that on the task if its text was measured. With k verdicts,
                the bounds that decide "over" or "not improved" have confidence 1 - (1 - confidence) / k (Bonferroni).
                The other bounds need no correction, since "within" requires all of them.

        Raises:
            UsageError: an unknown name, no budget, or a budget or confidence out of range.
        """
        wanted = dict(budget) if isinstance(budget, Mapping) else dict.fromkeys(self.measurements, float(budget))
        names = self.everything
        for name in wanted:
            if name not in names:
                raise UsageError(f"budget of '{name}': no such text; {did_you_mean(str(name), names)}")
        if not wanted:
            raise UsageError("budget: give one for at least one text")
        given = len(wanted) + (self.task is not None)
        verdicts = {
            name: judge(names[name].forgetting, wanted[name], confidence, of=given) for name in names if name in wanted
        }
        return ProfileCheck(verdicts, self, None if self.task is None else self.task.improvement(confidence, of=given))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the models, and for each text the row of `measure` with `p` and `p_holm`.

        `probes` has the same for the base model's own answers, if they were measured.
        """
        p, corrected = self.p, self.p_holm
        texts = {
            name: one.to_dict() | {"p": _or_none(p[name]), "p_holm": _or_none(corrected[name])}
            for name, one in self.measurements.items()
        }
        probes = {} if self.probes is None else {"probes": self.probes.to_dict()["texts"]}
        return {"base": self.first.base, "tuned": self.first.tuned, "texts": texts, **probes}

    def to_frame(self) -> pd.DataFrame:
        """One row per text."""
        return _frame(self.to_dict())

    def shown(self) -> list[Shown]:
        """One row per text: excess forgetting with its 95 % interval and Holm's p, agreement, tokens and documents."""
        heading = [
            f"{self.first.tuned} against {self.first.base} on {several(len(self.measurements), 'text')}, "
            f"{self.first.dtype}",
            "forgetting in nats/token; intervals of 95 %; p of no forgetting, corrected for all texts (Holm)",
        ]
        found = [self._table(heading, "text", "documents")]
        return [*found, *self.probes_shown()]

    def probes_shown(self) -> list[Shown]:
        """The table of the base model's own answers; empty if they were not measured."""
        if self.probes is None:
            return []
        n = sum(one.forgetting.n_documents for one in self.answers.values())
        heading = f"on the base model's own answers to {several(n, 'prompt')}, by kind of prompt:"
        return [self.probes._table([heading], "prompts", "answers")]

    def _table(self, heading: list[str], what: str, documents: str) -> Shown:
        corrected = self.p_holm
        rows = [
            (
                name,
                fixed(one.forgetting.value),
                one.forgetting.se_text,
                _span(one.forgetting),
                p_value(corrected[name]),
                f"{100 * one.means['agreement'].value:.1f} %",
                f"{one.forgetting.n_tokens:,}",
                f"{one.forgetting.n_documents:,}",
            )
            for name, one in self.measurements.items()
        ]
        columns = (what, "forgetting", "± se", "95 %", "p", "agreement", "tokens", documents)
        return Shown(heading, columns, rows, self.notices)

    @property
    def notices(self) -> tuple[str, ...]:
        """The notices of all texts, then of the probes; a notice shared by all texts occurs once, without a name."""
        found: dict[str, list[str]] = {}
        for name, one in self.measurements.items():
            for notice in one.notices:
                found.setdefault(notice, []).append(name)
        count = len(self.measurements)
        told = [notice if len(names) == count else f"{', '.join(names)}: {notice}" for notice, names in found.items()]
        probes = () if self.probes is None else self.probes.notices
        return *told, *(f"the base model's own answers: {notice}" for notice in probes if notice not in found)

    def figure(self) -> go.Figure:
        """A forest plot, as a Plotly figure: excess forgetting of each text with its 95 % interval."""
        names = list(self.measurements)
        means = [one.forgetting for one in self.measurements.values()]
        half = [mean.bound(0.975) for mean in means]
        trace = {
            "type": "scatter",
            "mode": "markers",
            "x": floats(mean.value for mean in means),
            "y": names,
            "error_x": {"type": "data", "array": floats(half), "color": "var(--ink)", "thickness": 1.4, "width": 5},
            "marker": marker("var(--line-fit)") | {"size": 9},
            "meta": {"series": "forgetting", "role": "points"},
        }
        layout = plain_layout(quantities.AXES["forgetting"], "")
        layout["yaxis"] |= {"type": "category", "autorange": "reversed"}
        layout["xaxis"] |= {"zeroline": True, "zerolinecolor": "var(--ink)"}
        title = f"What {self.first.tuned} forgot, by text"
        alt = "; ".join(f"{name} {fixed(mean.value)} ± {mean.se_text}" for name, mean in zip(names, means, strict=True))
        spec = {"data": [trace], "layout": layout}
        return plotly_figure(Chart("profile", html.escape(title), "Bars are 95 % intervals.", alt, spec))


def judged(found: Measurement, task: Measurement | None, budget: float, confidence: float) -> CheckResult:
    """The verdict on one text and, if measured, on the task; failing bounds are corrected for both verdicts."""
    of = 1 if task is None else 2
    verdict = judge(found.forgetting, budget, confidence, of=of)
    improved = None if task is None else task.improvement(confidence, of=of)
    return CheckResult(**vars(verdict), measurement=found, task=improved)


@dataclass(frozen=True)
class ProfileCheck(Result):
    """Verdicts on the budgets of several texts, or of the base model's own answers.

    Attributes:
        verdicts: the verdicts by the text's name.
        profile: the measurements that they are based on.
        task: whether the task improved; None if no text of the task was given.
    """

    verdicts: dict[str, Verdict]
    profile: Profile = field(repr=False)
    task: Improvement | None = None

    @property
    def outcome(self) -> Outcome:
        """The verdict on forgetting and on the task in one word; see `task.outcome`."""
        return outcome(self.verdict, self.task)

    @property
    def verdict(self) -> Literal["within", "over", "undecided"]:
        """`over` if any text is, `within` if all are, else `undecided`."""
        found = {one.verdict for one in self.verdicts.values()}
        return "over" if "over" in found else "undecided" if "undecided" in found else "within"

    def exit_code(self, *, strict: bool = False, allow_undecided: bool = False) -> int:
        """The largest exit code of all verdicts: 3 if one fails; see `Verdict.exit_code`."""
        how = {"strict": strict, "allow_undecided": allow_undecided}
        task = 0 if self.task is None else self.task.exit_code(**how)
        return max(task, *(one.exit_code(**how) for one in self.verdicts.values()))

    def sentences(self) -> list[str]:
        """One sentence on the task, if measured, and one per text."""
        task = [] if self.task is None else [self.task.sentence()]
        return [*task, *(f"{name}: {one.sentence()}" for name, one in self.verdicts.items())]

    def to_dict(self) -> dict[str, Any]:
        """The profile's data, with each text's verdict, budget and bounds added to its row."""
        row = self.profile.to_dict()
        for name, one in self.verdicts.items():
            bounds = {"forgetting_low": _or_none(one.low), "forgetting_high": _or_none(one.high)}
            judged = {"verdict": one.verdict, "budget": one.budget, "confidence": one.confidence}
            rows = row["texts"] if name in row["texts"] else row["probes"]
            rows[name] = {**judged, **bounds, **rows[name]}
        task = {} if self.task is None else {"outcome": self.outcome, "task": self.task.to_dict()}
        return {**task, "verdict": self.verdict, **row}

    def to_frame(self) -> pd.DataFrame:
        """One row per text."""
        return _frame(self.to_dict())

    def shown(self) -> list[Shown]:
        """The verdicts in words, and the profile's tables."""
        return [Shown(self.sentences()), *self.profile.shown()]


def _frame(found: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame.from_dict(found["texts"], orient="index").rename_axis("name")


def two_sided_p(mean: Mean) -> float:
    """Two-sided p of a true mean of zero, by Student's t with n - 1 degrees of freedom for n documents.

    NaN with fewer than LEAST documents, or if the standard error is zero but the mean is not.
    """
    if mean.n_documents < LEAST or math.isnan(mean.se):
        return math.nan
    if mean.se == 0.0:
        return 1.0 if mean.value == 0.0 else math.nan
    from scipy.special import stdtr

    return float(2 * stdtr(mean.n_documents - 1, -abs(mean.value / mean.se)))


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _span(mean: Mean) -> str:
    low, high = mean.interval()
    return f"{fixed(low)} to {fixed(high)}" if math.isfinite(high - low) else "unknown"

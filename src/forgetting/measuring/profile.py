"""What a model forgot of several texts: one measurement a text, of the same two models, told apart as many tests."""

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
        measurements: by the text's name, in the order given.
        task: that of the task's held-out text, which is not among them; None without one.
        probes: those of the base model's own answers by kind of prompt, which are measured beside the texts where it
            has a chat template; None without. Their p are corrected by themselves: the texts' do not depend on them.
    """

    measurements: dict[str, Measurement]
    task: Measurement | None = None
    probes: Profile | None = None

    @property
    def first(self) -> Measurement:
        """That of the first text."""
        return next(iter(self.measurements.values()))

    @property
    def everything(self) -> dict[str, Measurement]:
        """The texts, and the probes after them; of one name it is the text."""
        return self.measurements | {k: v for k, v in self.answers.items() if k not in self.measurements}

    @property
    def answers(self) -> dict[str, Measurement]:
        """Those of `probes`; empty without."""
        return {} if self.probes is None else self.probes.measurements

    @property
    def p(self) -> dict[str, float]:
        """Two-sided p of no excess forgetting on each text; NaN below LEAST documents or without spread."""
        return {name: two_sided_p(one.forgetting) for name, one in self.measurements.items()}

    @property
    def p_holm(self) -> dict[str, float]:
        """`p` corrected for the number of texts; see `estimate.holm`."""
        return dict(zip(self.measurements, holm(list(self.p.values())), strict=True))

    @checked
    def check(self, budget: float | Mapping[str, float], confidence: float = 0.95) -> ProfileCheck:
        """Hold each text to a budget.

        Args:
            budget: excess forgetting that is allowed, nats/token: one number for all texts, or one by the name of a
                text or a kind of `probes`; what is not named is not judged.
            confidence: of all verdicts together, that on the task among them where its text was measured. With k
                verdicts the bounds that say "over" or "not improved" are of confidence 1 - (1 - confidence) / k
                (Bonferroni); the others need no correction, since all of them must hold.

        Raises:
            UsageError: a name that no text has, no budget, or numbers that make no sense.
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
        """Plain data for JSON: the models, and by the text's name the row of `measure`, with p and Holm's p.

        `probes` has such rows of the base model's own answers, where these were measured.
        """
        p, corrected = self.p, self.p_holm
        texts = {
            name: one.to_dict() | {"p": _or_none(p[name]), "p_holm": _or_none(corrected[name])}
            for name, one in self.measurements.items()
        }
        probes = {} if self.probes is None else {"probes": self.probes.to_dict()["texts"]}
        return {"base": self.first.base, "tuned": self.first.tuned, "texts": texts, **probes}

    def to_frame(self) -> pd.DataFrame:
        """One row a text."""
        return _frame(self.to_dict())

    def shown(self) -> list[Shown]:
        """One row a text: excess forgetting with its 95 % interval and Holm's p, agreement, how much was measured."""
        heading = [
            f"{self.first.tuned} against {self.first.base} on {several(len(self.measurements), 'text')}, "
            f"{self.first.dtype}",
            "forgetting in nats/token; intervals of 95 %; p of no forgetting, corrected for all texts (Holm)",
        ]
        found = [self._table(heading, "text", "documents")]
        return [*found, *self.probes_shown()]

    def probes_shown(self) -> list[Shown]:
        """A table of the base model's own answers, where they were measured."""
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
        """Those of all texts; a notice that all share is there once. Those of the probes come last."""
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
    """One text held to a budget, and its task where one was measured; the bounds that fail are of as many verdicts."""
    of = 1 if task is None else 2
    verdict = judge(found.forgetting, budget, confidence, of=of)
    improved = None if task is None else task.improvement(confidence, of=of)
    return CheckResult(**vars(verdict), measurement=found, task=improved)


@dataclass(frozen=True)
class ProfileCheck(Result):
    """Verdicts on the budgets of several texts, or of the base model's own answers.

    Attributes:
        verdicts: by the text's name.
        profile: what they rest on.
        task: whether the task improved; None where no text of it was given.
    """

    verdicts: dict[str, Verdict]
    profile: Profile = field(repr=False)
    task: Improvement | None = None

    @property
    def outcome(self) -> Outcome:
        """One verdict of all: that on forgetting, and `not improved` or `undecided` where the task's is."""
        return outcome(self.verdict, self.task)

    @property
    def verdict(self) -> Literal["within", "over", "undecided"]:
        """`over` where any text is, `within` where all are, `undecided` between."""
        found = {one.verdict for one in self.verdicts.values()}
        return "over" if "over" in found else "undecided" if "undecided" in found else "within"

    def exit_code(self, *, strict: bool = False, allow_undecided: bool = False) -> int:
        """The largest of all verdicts': 3 where one fails, as `Verdict.exit_code` says."""
        how = {"strict": strict, "allow_undecided": allow_undecided}
        task = 0 if self.task is None else self.task.exit_code(**how)
        return max(task, *(one.exit_code(**how) for one in self.verdicts.values()))

    def sentences(self) -> list[str]:
        """That on the task, and one a text."""
        task = [] if self.task is None else [self.task.sentence()]
        return [*task, *(f"{name}: {one.sentence()}" for name, one in self.verdicts.items())]

    def to_dict(self) -> dict[str, Any]:
        """That of the profile, with each text's verdict, budget and bounds beside its numbers."""
        row = self.profile.to_dict()
        for name, one in self.verdicts.items():
            bounds = {"forgetting_low": _or_none(one.low), "forgetting_high": _or_none(one.high)}
            judged = {"verdict": one.verdict, "budget": one.budget, "confidence": one.confidence}
            rows = row["texts"] if name in row["texts"] else row["probes"]
            rows[name] = {**judged, **bounds, **rows[name]}
        task = {} if self.task is None else {"outcome": self.outcome, "task": self.task.to_dict()}
        return {**task, "verdict": self.verdict, **row}

    def to_frame(self) -> pd.DataFrame:
        """One row a text."""
        return _frame(self.to_dict())

    def shown(self) -> list[Shown]:
        """The verdicts in words, and the profile."""
        return [Shown(self.sentences()), *self.profile.shown()]


def _frame(found: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame.from_dict(found["texts"], orient="index").rename_axis("name")


def two_sided_p(mean: Mean) -> float:
    """p of a mean of zero, Student's with its documents; NaN below LEAST documents or without spread."""
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

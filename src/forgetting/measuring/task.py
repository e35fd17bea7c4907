"""Whether the task improved: the verdict that accompanies the one on forgetting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..display.numbers import fixed, several
from .estimate import Mean
from .verdict import LEAST, check_confidence, exit_code_of

Outcome = Literal["within", "over", "not improved", "undecided"]


@dataclass(frozen=True)
class Improvement:
    """How much better the tuned model predicts held-out text of its task than the base model does.

    Attributes:
        verdict: `improved` if the lower confidence bound of the gain is above 0, `not improved` if the upper one is not
            above 0, otherwise `undecided`; also with fewer than LEAST documents.
        gain: the base model's loss minus the tuned model's, paired token by token, nats/token.
        text: the task's text.
        before, after: the two losses.
        confidence: confidence of each one-sided bound.
        low, high: the one-sided bounds.
        notices: what a reader of the numbers should know.
    """

    verdict: Literal["improved", "not improved", "undecided"]
    gain: Mean
    text: str
    before: Mean
    after: Mean
    confidence: float
    low: float
    high: float
    notices: tuple[str, ...] = ()

    def exit_code(self, *, strict: bool = False, allow_undecided: bool = False) -> int:
        """Like `Verdict.exit_code`; with fewer than LEAST documents it could not have decided."""
        word = "within" if self.verdict == "improved" else self.verdict
        blind = self.gain.n_documents < LEAST
        return exit_code_of(word, blind, strict=strict, allow_undecided=allow_undecided)

    def sentence(self) -> str:
        """The verdict in words."""
        gain = f"{fixed(self.gain.value)} ± {self.gain.se_text} nats/token"
        match self.verdict:
            case "improved":
                return f"the task improved by {gain}, at least {fixed(self.low)}"
            case "not improved":
                change = f"its loss changed by {fixed(0 - self.gain.value)} ± {self.gain.se_text} nats/token"
                return f"the task did not improve: {change}, at best {fixed(0 - self.high)}"
        if self.gain.n_documents < LEAST:
            documents = several(self.gain.n_documents, "document")
            return f"undecided whether the task improved: {documents}; give at least {LEAST}"
        # with several verdicts the two bounds differ in confidence: not one interval
        span = f"at least {fixed(self.low)} and at most {fixed(self.high)}"
        return f"undecided whether the task improved: measured improvement {gain}, {span}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        means = {"gain": self.gain, "data_loss_base": self.before, "data_loss_tuned": self.after}
        row: dict[str, Any] = {"verdict": self.verdict, "text": self.text, "confidence": self.confidence}
        for name, mean in means.items():
            row |= {name: mean.value, f"{name}_se": _or_none(mean.se)}
        bounds = {"gain_low": _or_none(self.low), "gain_high": _or_none(self.high)}
        counts = {"text_tokens": self.gain.n_tokens, "text_documents": self.gain.n_documents}
        return row | bounds | counts | {"notices": list(self.notices)}


def judge_task(gain: Mean, confidence: float, *, of: int = 1, **more: Any) -> Improvement:
    """Compare the bounds of the gain with 0.

    Args:
        gain: the base model's loss minus the tuned model's, nats/token.
        confidence: confidence of each bound.
        of: number of verdicts given together: the upper bound, which decides "not improved", has confidence
            1 - (1 - confidence) / of.
        more: the other attributes of `Improvement`.

    Raises:
        UsageError: a confidence outside (0.5, 1).
    """
    check_confidence(confidence)
    low, high = gain.value - gain.bound(confidence), gain.value + gain.bound(1 - (1 - confidence) / of)
    verdict: Literal["improved", "not improved", "undecided"] = "undecided"
    if gain.n_documents >= LEAST:
        verdict = "improved" if low > 0 else "not improved" if high <= 0 else "undecided"
    return Improvement(verdict, gain, confidence=confidence, low=low, high=high, **more)


def outcome(forgetting: Literal["within", "over", "undecided"], task: Improvement | None) -> Outcome:
    """The verdict on forgetting if that is `over`, the task improved or there is no task; else the task's verdict."""
    if forgetting == "over" or task is None or task.verdict == "improved":
        return forgetting
    return "not improved" if task.verdict == "not improved" else "undecided"


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None

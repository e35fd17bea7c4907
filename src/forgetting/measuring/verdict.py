"""Within budget, over it, or undecided: what the standard error supports. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..display.numbers import counted, several
from ..errors import UsageError
from .estimate import Mean

LEAST = 5
"""Minimum documents for a verdict."""
USUAL = 30
"""Number of documents with which a verdict is useful."""
HOPELESS = 1000
"""Largest multiple of the measured documents that is recommended; beyond it no number is named."""


@dataclass(frozen=True)
class Verdict:
    """A measured forgetting against a budget.

    Attributes:
        verdict: `within` if the upper confidence bound is within the budget, `over` if the lower bound is over it,
            otherwise `undecided`; also with fewer than LEAST documents.
        forgetting: excess forgetting, nats/token.
        budget: nats/token.
        confidence: confidence of each one-sided bound.
        low, high: the one-sided confidence bounds.
    """

    verdict: Literal["within", "over", "undecided"]
    forgetting: Mean
    budget: float
    confidence: float
    low: float
    high: float

    @property
    def blind(self) -> bool:
        """Whether it could not have decided: fewer than LEAST documents, or an interval wider than the budget."""
        return self.forgetting.n_documents < LEAST or not self.high - self.low <= self.budget

    def exit_code(self, *, strict: bool = False, allow_undecided: bool = False) -> int:
        """3 if over the budget, or if undecided and strict or `blind`, unless undecided is allowed; else 0."""
        return exit_code_of(self.verdict, self.blind, strict=strict, allow_undecided=allow_undecided)

    @property
    def documents_needed(self) -> int | None:
        """About how many documents in all would decide if the standard error falls with 1/sqrt(n); None if unknown."""
        value = self.forgetting.value
        gap = abs(self.budget - value)
        half = value - self.low if value > self.budget else self.high - value  # `judge` may widen the lower bound only
        if self.forgetting.n_documents < LEAST or not math.isfinite(half) or gap == 0:
            return None
        return math.ceil(self.forgetting.n_documents * (half / gap) ** 2)

    def sentence(self) -> str:
        """The verdict in words."""
        text = _figures((self.forgetting.value, self.low, self.high), self.budget)
        se = "unknown" if math.isnan(self.forgetting.se) else f"{self.forgetting.se:.2g}"
        measured = f"{text(self.forgetting.value)} nats/token (standard error {se})"
        match self.verdict:
            case "within":
                return f"within budget: forgetting {measured}, at most {text(self.high)}, budget {self.budget:g}"
            case "over":
                return f"over budget: forgetting {measured}, at least {text(self.low)}, budget {self.budget:g}"
        # with several verdicts the two bounds differ in confidence: not one interval
        bounds = f", at least {text(self.low)} and at most {text(self.high)}"
        span = bounds if math.isfinite(self.high - self.low) else ""
        return f"undecided: forgetting {measured}{span}, budget {self.budget:g}; {self._more()}"

    def _more(self) -> str:
        """What would decide, in words."""
        documents = self.forgetting.n_documents
        if documents < LEAST:
            more = several(LEAST - documents, "more document")
            return (
                f"{counted(documents, 'document', 'has')} no reliable standard error; give at least {more} "
                f"({LEAST} in all), better {USUAL - documents} ({USUAL} in all)"
            )
        if (needed := self.documents_needed) is None:
            return "the measured value equals the budget; more text may not decide"
        if needed > HOPELESS * documents:
            return (
                f"the measured value is so close to the budget that {HOPELESS:,} times as many documents may not decide"
            )
        return f"about {several(needed - documents, 'more document')} like these {documents:,} would decide"


def _figures(values: Sequence[float], budget: float) -> Callable[[float], str]:
    """Numbers as text with 4 or more decimals: enough to tell each from the budget and from zero."""

    def clear(value: float, decimals: int) -> bool:
        return all(
            value == other or not math.isfinite(value) or round(value, decimals) != round(other, decimals)
            for other in (budget, 0.0)
        )

    decimals = next((d for d in range(4, 13) if all(clear(v, d) for v in values)), 12)
    return lambda value: f"{value:.{decimals}f}"


def exit_code_of(verdict: str, blind: bool, *, strict: bool, allow_undecided: bool) -> int:
    """The exit code of a verdict: 0 within, 3 over; undecided depends on `strict`, `allow_undecided` and `blind`."""
    if verdict == "within" or (verdict == "undecided" and allow_undecided):
        return 0
    return 3 if verdict != "undecided" or strict or blind else 0


def judge(forgetting: Mean, budget: float, confidence: float, *, of: int = 1) -> Verdict:
    """Compare the one-sided confidence bounds with the budget.

    Args:
        forgetting: measured forgetting, nats/token.
        budget: nats/token.
        confidence: confidence of each bound.
        of: number of verdicts given together: the lower bound has confidence 1 - (1 - confidence) / of, so that if all
            models are within their budgets, any verdict is "over" in at most 1 - confidence of all cases.

    Raises:
        UsageError: a confidence outside (0.5, 1), a budget that is not positive.
    """
    check_budget(budget, confidence)
    low = forgetting.value - forgetting.bound(1 - (1 - confidence) / of)
    high = forgetting.value + forgetting.bound(confidence)
    verdict: Literal["within", "over", "undecided"] = "undecided"
    if forgetting.n_documents < LEAST:
        pass  # a standard error from so few documents is itself unreliable
    elif high <= budget:
        verdict = "within"
    elif low > budget:
        verdict = "over"
    return Verdict(verdict, forgetting, budget, confidence, low, high)


def check_budget(budget: float, confidence: float, what: str = "budget") -> None:
    """Refuse invalid budgets and confidences.

    Args:
        budget: nats/token.
        confidence: confidence of each bound.
        what: the budget's name in the message.

    Raises:
        UsageError: a confidence outside (0.5, 1), a budget that is not positive.
    """
    check_confidence(confidence)
    if not (math.isfinite(budget) and budget > 0):
        raise UsageError(f"{what} {budget}: must be a positive number of nats/token, for example 0.1")


def check_confidence(confidence: float) -> None:
    """Refuse an invalid confidence.

    Raises:
        UsageError: outside (0.5, 1).
    """
    if not 0.5 < confidence < 1:
        raise UsageError(f"confidence {confidence}: must be between 0.5 and 1, for example 0.95")

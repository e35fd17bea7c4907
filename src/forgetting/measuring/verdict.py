"""Within budget, over it, or undecided: what a standard error allows to say. Pure Python."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from .estimate import Mean


@dataclass(frozen=True)
class Verdict:
    """A measured forgetting against a budget.

    Attributes:
        verdict: `within` when the upper confidence bound is within the budget, `over` when the lower bound is over it,
            `undecided` between.
        forgetting: excess forgetting, nats/token.
        budget: nats/token.
        confidence: of each one-sided bound.
        low, high: the one-sided confidence bounds.
    """

    verdict: Literal["within", "over", "undecided"]
    forgetting: Mean
    budget: float
    confidence: float
    low: float
    high: float

    def exit_code(self, *, strict: bool = False) -> int:
        """3 when over the budget, or undecided and strict; else 0."""
        return 3 if self.verdict == "over" or (strict and self.verdict == "undecided") else 0

    def sentence(self) -> str:
        """The verdict in words."""
        se = "unknown" if math.isnan(self.forgetting.se) else f"{self.forgetting.se:.4f}"
        measured = f"{self.forgetting.value:.4f} nats/token (standard error {se})"
        match self.verdict:
            case "within":
                return f"within budget: forgetting {measured}, at most {self.high:.4f}, budget {self.budget:g}"
            case "over":
                return f"over budget: forgetting {measured}, at least {self.low:.4f}, budget {self.budget:g}"
        more = (
            "one document has no standard error; give text with more documents"
            if math.isnan(self.forgetting.se)
            else "measure more text to decide"
        )
        return f"undecided: forgetting {measured}, {self.low:.4f} to {self.high:.4f}, budget {self.budget:g}; {more}"


def judge(forgetting: Mean, budget: float, confidence: float) -> Verdict:
    """Compare the one-sided confidence bounds with the budget.

    Raises:
        UsageError: a confidence outside (0.5, 1), a budget that is no number.
    """
    if not 0.5 < confidence < 1:
        raise UsageError(f"confidence {confidence}: must lie between 0.5 and 1, for example 0.95")
    if not math.isfinite(budget):
        raise UsageError(f"budget {budget}: must be a number of nats/token, for example 0.1")
    half = forgetting.bound(confidence)
    low, high = forgetting.value - half, forgetting.value + half
    verdict: Literal["within", "over", "undecided"] = "undecided"
    if high <= budget:
        verdict = "within"
    elif low > budget:
        verdict = "over"
    return Verdict(verdict, forgetting, budget, confidence, low, high)

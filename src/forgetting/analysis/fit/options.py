"""Options of a fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from forgetting.analysis.fit.objective import Objective
from forgetting.errors import UsageError, did_you_mean

STARTS = 64
INTERVALS = ("bootstrap", "profile")


@dataclass(frozen=True)
class Options:
    """Options of a fit; `fit_law` explains each."""

    objective: Objective = field(default_factory=Objective)
    seed: int = 0
    bootstrap: int = 200
    confidence: float = 0.95
    intervals: str = "bootstrap"
    starts: int = STARTS
    start: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse invalid values and combinations."""
        if not 0 < self.confidence < 1:
            raise UsageError(f"confidence is {self.confidence}; it must be between 0 and 1, for example 0.95")
        if self.bootstrap < 0 or self.starts < 0 or (self.starts == 0 and self.start is None):
            raise UsageError("bootstrap and starts must not be negative, and starts=0 needs a start")
        if self.intervals not in INTERVALS:
            raise UsageError(f"intervals is '{self.intervals}'; {did_you_mean(self.intervals, INTERVALS)}")
        if self.intervals == "profile" and not self.objective.quadratic:
            raise UsageError(
                "intervals 'profile' needs objective 'least-squares' or 'log-least-squares', whose likelihood is known"
            )

"""A run's path as a curve: forgetting when the fine-tuning loss first reached x."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forgetting.analysis.compare.source import Run
from forgetting.analysis.laws.base import Array

TIE = 1e-12


@dataclass(frozen=True)
class Path:
    """A run's first-passage curve: the measurements at which its loss is lower than at all earlier ones.

    What a run does after its lowest loss (it forgets more without improving) is left out, since nobody who stops early
    would choose it. Between measurements the curve is linear, so a run that stopped early has exactly the curve of the
    longer run, up to its end.

    Attributes:
        run: the run.
        x: [k] losses, increasing, so in reverse order of training; oriented so that lower is better.
        y: [k] forgetting, nats/token.
        step, seconds: [k] steps and training time until then.
    """

    run: Run
    x: Array
    y: Array
    step: Array
    seconds: Array

    @property
    def low(self) -> float:
        """The best loss."""
        return float(self.x[0])

    @property
    def high(self) -> float:
        """The first measured loss."""
        return float(self.x[-1])

    def mean(self, low: float, high: float) -> float:
        """Forgetting averaged over losses from `low` to `high`, or at one loss if they are equal; NaN outside x."""
        if self.x.size == 1:
            return float(self.y[0]) if low == high == self.low else math.nan
        if low < self.low - TIE or high > self.high + TIE:
            return math.nan
        if high - low <= TIE:
            return float(np.interp(low, self.x, self.y))
        inside = self.x[(self.x > low) & (self.x < high)]
        at = np.concatenate([[low], inside, [high]])
        return float(np.trapezoid(np.interp(at, self.x, self.y), at)) / (high - low)

    def cost(self, x: float) -> tuple[float, float]:
        """Steps and seconds until the loss first reached x; NaN if it never did, or was lower from the start."""
        if not self.low - TIE <= x <= self.high + TIE:
            return math.nan, math.nan
        return float(np.interp(x, self.x, self.step)), float(np.interp(x, self.x, self.seconds))


def path(run: Run) -> Path:
    """The first-passage curve of a run."""
    before = np.concatenate([[np.inf], np.minimum.accumulate(run.x)[:-1]])
    record = np.flatnonzero(run.x < before)[::-1]
    return Path(run, run.x[record], run.y[record], run.step[record], run.seconds[record])


def window(paths: Sequence[Path]) -> tuple[float, float] | None:
    """The losses that every path passes through; None if there are none.

    A path with a single point gives a window of width 0, if the others pass through it.
    """
    low, high = max(p.low for p in paths), min(p.high for p in paths)
    return (low, high) if low <= high else None

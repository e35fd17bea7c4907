"""A run's path as a curve: forgetting when the fine-tuning loss was first as low as x."""

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
    """First passage: of a run's measurements, those at which the loss is lower than at every one before.

    What a run does after its lowest loss (it goes on forgetting and gains nothing) is no choice that anybody who
    stops early would make, so it is not part of the curve. Between measurements the curve is straight: then a run
    that stopped early has exactly the curve of the longer run, as far as it goes.

    Attributes:
        run: whose path it is.
        x: [k] losses, rising; oriented so that lower is better.
        y: [k] forgetting.
        step, seconds: [k] what it took.
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
        """Forgetting averaged over losses from `low` to `high`; at one loss where both are the same."""
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
        """Steps and seconds until the loss was first as low as x; NaN if it never was, or was at once."""
        if not self.low - TIE <= x <= self.high + TIE:
            return math.nan, math.nan
        return float(np.interp(x, self.x, self.step)), float(np.interp(x, self.x, self.seconds))


def path(run: Run) -> Path:
    """The first-passage curve of a run."""
    before = np.concatenate([[np.inf], np.minimum.accumulate(run.x)[:-1]])
    record = np.flatnonzero(run.x < before)[::-1]
    return Path(run, run.x[record], run.y[record], run.step[record], run.seconds[record])


def window(paths: Sequence[Path]) -> tuple[float, float] | None:
    """The losses that every path passes through; None where there are none.

    One path of a single point makes a window of width 0, if the others pass through it.
    """
    low, high = max(p.low for p in paths), min(p.high for p in paths)
    return (low, high) if low <= high else None

"""Does L_f predict what was lost? Correlations over a study's evaluated steps, with intervals. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_RUNS = 4
"""Fewer runs say nothing of how runs differ."""


@dataclass(frozen=True)
class Correlation:
    """How far one number goes along with another.

    Attributes:
        r: Spearman's rank correlation; NaN where one of the two does not vary.
        low, high: 95 % interval from resampling whole runs, since steps of one run are not independent; NaN where there
            are fewer than MIN_RUNS.
        points, runs: what it rests on.
    """

    r: float
    low: float
    high: float
    points: int
    runs: int


def correlate(
    x: Sequence[float], y: Sequence[float], runs: Sequence[Hashable], *, resamples: int = 1000, seed: int = 0
) -> Correlation:
    """Spearman's correlation of x and y, and its interval from whole runs drawn with replacement.

    Source: Spearman 1904, Am. J. Psychol. 15:72; the resampling as for the fits of laws.

    Args:
        x, y: [n] numbers, one an evaluated step.
        runs: [n] the run of each.
        resamples: of the interval.
        seed: of the resampling.

    Examples:
        >>> correlate([1, 2, 3, 4], [1, 4, 9, 16], "aabb").r
        1.0
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    labels = {run: i for i, run in enumerate(dict.fromkeys(runs))}
    which = np.asarray([labels[run] for run in runs], np.int64)
    r = _spearman(a, b)
    if len(labels) < MIN_RUNS or math.isnan(r):
        return Correlation(r, math.nan, math.nan, len(a), len(labels))
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(which == i) for i in range(len(labels))]
    draws = []
    for _ in range(resamples):
        drawn = np.concatenate([members[i] for i in generator.integers(0, len(labels), len(labels))])
        value = _spearman(a[drawn], b[drawn])
        if not math.isnan(value):
            draws.append(value)
    if len(draws) < resamples / 2:
        return Correlation(r, math.nan, math.nan, len(a), len(labels))
    low, high = np.quantile(draws, (0.025, 0.975))
    return Correlation(r, float(low), float(high), len(a), len(labels))


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.clip(np.corrcoef(_ranks(a), _ranks(b))[0, 1], -1, 1))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0; ties share their mean rank."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    result: NDArray[np.float64] = (ends - (counts + 1) / 2)[which]
    return result

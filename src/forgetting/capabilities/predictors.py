"""Does L_f predict what was lost? Correlations over a study's evaluated steps, with intervals. numpy and scipy only."""

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
    r = float(_spearman(a[None], b[None])[0])
    if len(labels) < MIN_RUNS or math.isnan(r):
        return Correlation(r, math.nan, math.nan, len(a), len(labels))
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(which == i) for i in range(len(labels))]
    drawn = [generator.integers(0, len(labels), len(labels)) for _ in range(resamples)]
    alike: dict[int, list[NDArray[np.int64]]] = {}  # resamples by their number of steps
    for points in (np.concatenate([members[i] for i in chosen]) for chosen in drawn):
        alike.setdefault(len(points), []).append(points)
    draws = np.concatenate([_spearman(a[np.stack(points)], b[np.stack(points)]) for points in alike.values()])
    draws = draws[~np.isnan(draws)]
    if len(draws) < resamples / 2:
        return Correlation(r, math.nan, math.nan, len(a), len(labels))
    low, high = np.quantile(draws, (0.025, 0.975))
    return Correlation(r, float(low), float(high), len(a), len(labels))


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row by row of [R, n]: the correlation of ranks; NaN where one of the two does not vary."""
    from scipy.stats import rankdata

    if a.shape[1] < 3:
        return np.full(len(a), math.nan)
    x, y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (rankdata(a, axis=1), rankdata(b, axis=1)))
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    result: NDArray[np.float64] = np.divide((x * y).sum(axis=1), scale, out=np.full(len(a), math.nan), where=scale > 0)
    return np.clip(result, -1, 1)

"""Does forgetting predict what was lost? Correlations over a study's evaluated steps, and a fitted map, with intervals.

Uses numpy and scipy only.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_RUNS = 4
"""Fewest runs for an interval, which depends on how runs differ."""
NEAR = 20
"""The band of a map at some forgetting uses the errors of this many steps with the most similar forgetting."""


@dataclass(frozen=True)
class Correlation:
    """A rank correlation with its interval.

    Attributes:
        r: Spearman's rank correlation; NaN if one of the two quantities does not vary, or with fewer than 3 steps.
        low, high: 95 % interval from resampling whole runs, because steps of one run are not independent; NaN with
            fewer than MIN_RUNS runs, or if most resamples have no correlation.
        points, runs: numbers of evaluated steps and of runs.
    """

    r: float
    low: float
    high: float
    points: int
    runs: int


def correlate(
    x: Sequence[float], y: Sequence[float], runs: Sequence[Hashable], *, resamples: int = 1000, seed: int = 0
) -> Correlation:
    """Spearman's correlation of x and y, with an interval from whole runs drawn with replacement.

    Source: Spearman 1904, Am. J. Psychol. 15:72.

    Args:
        x, y: [n] numbers, one per evaluated step.
        runs: [n] the run of each step.
        resamples: number of resamples.
        seed: random seed of the resamples.

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
    """[R] rank correlations of the rows of two [R, n] arrays; NaN where one does not vary, or if n < 3."""
    from scipy.stats import rankdata

    if a.shape[1] < 3:
        return np.full(len(a), math.nan)
    x, y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (rankdata(a, axis=1), rankdata(b, axis=1)))
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    result: NDArray[np.float64] = np.divide((x * y).sum(axis=1), scale, out=np.full(len(a), math.nan), where=scale > 0)
    return np.clip(result, -1, 1)


@dataclass(frozen=True)
class LossMap:
    """The share lost as a non-decreasing function of forgetting, fitted to evaluated steps.

    Source: isotonic regression (Barlow et al. 1972, *Statistical Inference under Order Restrictions*), with the base
    model as a further point (0, 0) and linear interpolation between the knots.

    Attributes:
        knots: [k] forgetting, ascending.
        shares: [k] share lost at each knot.
        x: [n] forgetting of the fitted steps.
        errors: [n] share lost at each of these, minus the prediction of a map fitted to the other runs.
    """

    knots: NDArray[np.float64]
    shares: NDArray[np.float64]
    x: NDArray[np.float64]
    errors: NDArray[np.float64]

    def at(self, forgetting: float) -> tuple[float, float, float]:
        """The share lost at a value of forgetting, and its 95 % band from the errors of the NEAR most similar steps."""
        value = float(np.interp(forgetting, self.knots, self.shares))
        near = self.errors[np.argsort(np.abs(self.x - forgetting), kind="stable")[:NEAR]]
        low, high = np.quantile(near, (0.025, 0.975))
        return value, min(max(value + float(low), 0.0), value), max(min(value + float(high), 1.0), value)


@dataclass(frozen=True)
class Predicted:
    """One evaluated step, predicted by a map fitted to all other runs.

    Attributes:
        run: the run of the step.
        x: its forgetting.
        lost: the share that it lost.
        value, low, high: the prediction and its band.
    """

    run: Hashable
    x: float
    lost: float
    value: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether the share lost is inside the band."""
        return self.low <= self.lost <= self.high


def fit_map(x: Sequence[float], y: Sequence[float], runs: Sequence[Hashable]) -> LossMap | None:
    """Fit the map from forgetting to the share lost; None with fewer than MIN_RUNS runs.

    Args:
        x: [n] forgetting.
        y: [n] share lost.
        runs: [n] the run of each step; the map's errors come from maps fitted without the step's run.

    Examples:
        >>> found = fit_map([0.0, 0.5, 1.0, 2.0], [0.0, 0.2, 0.4, 0.8], "abcd")
        >>> round(found.at(0.75)[0], 3)
        0.3
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    which = np.asarray([list(dict.fromkeys(runs)).index(run) for run in runs], np.int64)
    if len(np.unique(which)) < MIN_RUNS:
        return None
    errors = np.empty(len(a))
    for run in np.unique(which):
        out = which == run
        errors[out] = b[out] - np.interp(a[out], *_isotonic(a[~out], b[~out]))
    return LossMap(*_isotonic(a, b), a, errors)


def left_out(x: Sequence[float], y: Sequence[float], runs: Sequence[Hashable]) -> list[Predicted]:
    """Each step predicted by a map fitted to the other runs, with its band; empty with at most MIN_RUNS runs."""
    found = []
    for run in dict.fromkeys(runs):
        others = [i for i, other in enumerate(runs) if other != run]
        fitted = fit_map([x[i] for i in others], [y[i] for i in others], [runs[i] for i in others])
        if fitted is not None:
            mine = (i for i, other in enumerate(runs) if other == run)
            found += [Predicted(run, x[i], y[i], *fitted.at(x[i])) for i in mine]
    return found


def _isotonic(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots and values of the fit; steps with equal forgetting are merged, and the base model is added as (0, 0)."""
    from scipy.optimize import isotonic_regression

    knots, place = np.unique(np.append(np.maximum(x, 0.0), 0.0), return_inverse=True)
    weights = np.bincount(place).astype(np.float64)
    means = np.bincount(place, np.append(y, 0.0)) / weights
    return knots, np.asarray(isotonic_regression(means, weights=weights).x, np.float64)

"""Estimates with intervals from few replicates: Student's t on one number a run, paired by seed where seeds are shared.

Steps of a run are not independent, so a run counts once: its average over the compared losses. Student's t on such
block averages is valid for as few as two blocks and errs on the safe side when their variances differ (Ibragimov &
Mueller 2010, doi:10.1198/jbes.2009.08046). All runs are measured on the same held-out text, so what the choice of text
does to all of them cancels in a difference; what it does not cancel is part of the runs' spread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

NAN = math.nan
EXACT = 1e-9  # nats: differences below it are rounding
LEAST_SEEDS = 2


@dataclass(frozen=True)
class Estimate:
    """A saving in nats/token: the reference's forgetting less the contender's; above 0 the contender is better.

    Attributes:
        value: NaN where nothing could be compared.
        low, high: interval; NaN where there is no honest one.
        p: two-sided, of no difference; NaN without an interval.
        freedom: degrees of freedom behind the interval.
        runs: runs of the contender that it stands on.
        scheme: `paired`, `unpaired`, `one more rank`, or empty without an interval.
        why: why there is no interval or no value; empty where there is one.
    """

    value: float
    low: float = NAN
    high: float = NAN
    p: float = NAN
    freedom: float = NAN
    runs: int = 0
    scheme: str = ""
    why: str = ""

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low)


def student(value: float, se: float, freedom: float, confidence: float, runs: int, scheme: str) -> Estimate:
    """Student's interval and two-sided p."""
    half = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * se
    exact = se <= EXACT / 100  # replicates equal to the last digit: copies, or planted lines
    p = float(abs(value) <= EXACT) if exact else float(2 * stats.t.sf(abs(value) / se, freedom))
    return Estimate(value, value - half, value + half, p, float(freedom), runs, scheme)


def welch(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard error and degrees of freedom of a sum, from each term's (variance, freedom) (Satterthwaite 1946)."""
    total = sum(v for v, _ in parts)
    spread = sum(v**2 / f for v, f in parts)
    return math.sqrt(total), total**2 / spread if spread > 0 else min(f for _, f in parts)


def difference(reference: Mapping[str, float], contender: Mapping[str, float], confidence: float) -> Estimate:
    """Mean of reference less mean of contender, one number a run, by seed.

    Runs of one seed see the same data in the same order, so they are paired if every seed of the side that has fewer
    is there on the other side too; else the two sides are independent samples (Welch).
    """
    ref = {s: v for s, v in reference.items() if math.isfinite(v)}
    con = {s: v for s, v in contender.items() if math.isfinite(v)}
    if not ref or not con:
        return Estimate(NAN, why="no run to compare")
    common = [s for s in con if s in ref]
    fewer = min(len(ref), len(con))
    if len(common) == fewer:
        d = np.array([ref[s] - con[s] for s in common])
        if fewer < LEAST_SEEDS:
            return Estimate(float(d[0]), runs=1, why="one seed says nothing of the spread between seeds: run 3 or more")
        return student(float(d.mean()), float(d.std(ddof=1)) / math.sqrt(fewer), fewer - 1, confidence, fewer, "paired")
    a, b = np.array(list(ref.values())), np.array(list(con.values()))
    value = float(a.mean() - b.mean())
    if fewer < LEAST_SEEDS:
        return Estimate(value, runs=b.size, why="one seed says nothing of the spread between seeds: run 3 or more")
    se, freedom = welch([(float(v.var(ddof=1)) / v.size, v.size - 1.0) for v in (a, b)])
    return student(value, se, freedom, confidence, b.size, "unpaired")


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p (1979): the family-wise error over all of them is held. NaN stays NaN and is not counted.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    out = [NAN] * len(p)
    tested = sorted((value, i) for i, value in enumerate(p) if math.isfinite(value))
    largest = 0.0
    for place, (value, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - place) * value))
        out[i] = largest
    return out

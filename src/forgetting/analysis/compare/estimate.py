"""Estimates with intervals from few replicates: Student's t on one number per run, paired by seed if seeds are shared.

Steps of a run are not independent, so a run counts once, with its average over the compared losses. Student's t on such
block averages is valid for as few as two blocks, and conservative if their variances differ (Ibragimov & Mueller 2010,
doi:10.1198/jbes.2009.08046). All runs are measured on the same held-out text, so the effects of the text that all runs
share cancel in a difference; the rest is part of the spread between runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from forgetting.analysis.laws.base import Array

NAN = math.nan
EXACT = 1e-9  # nats: differences below it are rounding
LEAST_SEEDS = 2
LEAST_CURVES = 5
NOISIER = 0.1  # p below which a curve is said to scatter more than the others


@dataclass(frozen=True)
class Estimate:
    """A saving in nats/token: the reference's forgetting minus the contender's; above 0 the contender is better.

    `trend` also uses it for the slope of the reference's line.

    Attributes:
        value: NaN if nothing could be compared.
        low, high: ends of the interval; NaN if there is none.
        p: two-sided p value for no difference; NaN without an interval.
        freedom: degrees of freedom of the interval.
        runs: number of the contender's runs behind it.
        scheme: origin of the interval: `paired`, `paired, spread from all curves`, `unpaired`, `one more rank`, `one
            more curve` or `jackknife`; empty without an interval.
        why: why there is no interval or no value; empty if there is one.
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
    """Student's interval and two-sided p, which for replicates equal up to rounding is 0, or 1 if the value is 0."""
    half = float(special.stdtrit(freedom, 0.5 + confidence / 2)) * se
    exact = se <= EXACT / 100  # replicates equal to the last digit: copies, or artificial lines
    if exact and abs(value) <= EXACT:
        half = max(half, abs(value))
    p = float(abs(value) <= EXACT) if exact else float(2 * special.stdtr(freedom, -abs(value) / se))
    return Estimate(value, value - half, value + half, p, float(freedom), runs, scheme)


def welch(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard error and degrees of freedom of a sum, from each term's (variance, freedom) (Satterthwaite 1946)."""
    total = sum(v for v, _ in parts)
    spread = sum(v**2 / f for v, f in parts)
    return math.sqrt(total), total**2 / spread if spread > 0 else min(f for _, f in parts)


def difference(reference: Mapping[str, float], contender: Mapping[str, float], confidence: float) -> Estimate:
    """The mean of the reference minus that of the contender, from one number per run, by seed.

    Runs with the same seed see the same data in the same order, so they are paired if every seed of the smaller side
    also occurs on the other side; otherwise the two sides are independent samples (Welch).
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
            return Estimate(
                float(d[0]), runs=1, why="one seed says nothing about the spread between seeds: run 3 or more"
            )
        return student(float(d.mean()), float(d.std(ddof=1)) / math.sqrt(fewer), fewer - 1, confidence, fewer, "paired")
    a, b = np.array(list(ref.values())), np.array(list(con.values()))
    value = float(a.mean() - b.mean())
    if fewer < LEAST_SEEDS:
        return Estimate(value, runs=b.size, why="one seed says nothing about the spread between seeds: run 3 or more")
    se, freedom = welch([(float(v.var(ddof=1)) / v.size, v.size - 1.0) for v in (a, b)])
    return student(value, se, freedom, confidence, b.size, "unpaired")


def blocks(values: Array, reference: int, contender: int, confidence: float) -> Estimate | None:
    """The paired difference of two curves, with the spread between runs estimated from all curves.

    Two or three seeds say little about a spread, and many curves have only a few seeds each. After removing each seed's
    common effect on all curves (randomised blocks), each curve's variance is shrunk towards that of all curves; the
    more alike the variances are, the more they are shrunk (Smyth 2004, doi:10.2202/1544-6115.1027; the degrees of
    freedom grow accordingly).

    Args:
        values: [K, S] forgetting of K curves with the same S seeds, averaged over the same losses.
        reference, contender: row indices.
        confidence: nominal coverage of the interval.

    Returns:
        None if the other curves cannot help: there are fewer than LEAST_CURVES in all, a curve has no spread at all,
        or one of the two scatters clearly more than the others (then only its own runs can describe it).
    """
    k, s = values.shape
    if k < LEAST_CURVES or s < LEAST_SEEDS:
        return None
    residual = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    freedom = (s - 1) * (1 - 1 / k)
    variance = (residual**2).sum(axis=1) / freedom
    if variance.min() <= (EXACT / 100) ** 2:
        return None
    two = [reference, contender]
    others = np.delete(variance, two)
    if (special.fdtrc(freedom, freedom * others.size, variance[two] / others.mean()) < NOISIER).any():
        return None
    common, prior = prior_variance(variance, freedom)
    drawn = variance if prior == 0 else (common + variance * (freedom / prior)) / (1 + freedom / prior)
    se, df = welch([(float(drawn[i]) / s, prior + freedom) for i in two])
    d = float((values[reference] - values[contender]).mean())
    return student(d, se, min(df, (k - 1.0) * (s - 1.0)), confidence, s, "paired, spread from all curves")


def prior_variance(variance: Array, freedom: float) -> tuple[float, float]:
    """The common variance around which the curves' variances scatter, and its degrees of freedom.

    From the moments of the log variances (Smyth 2004, section 6.2). The degrees of freedom are infinite if the
    variances scatter no more than estimates of one variance would.
    """
    e = np.log(variance) - special.digamma(freedom / 2) + math.log(freedom / 2)
    excess = float(e.var(ddof=1) - special.polygamma(1, freedom / 2))
    if excess <= 0:
        return float(variance.mean()), math.inf
    from scipy import optimize  # importing it takes longer than all comparisons

    half = optimize.brentq(lambda y: float(special.polygamma(1, y)) - excess, 1e-3, 1e8)
    return math.exp(float(e.mean()) + float(special.digamma(half)) - math.log(half)), 2 * half

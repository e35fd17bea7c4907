"""The net loss of items, with one-sided bounds that are valid for few items and if none was lost; numpy and scipy only.

The net share lost is (lost - gained) / n over all n items: the decrease in the share of right answers. A bound is the
most extreme value that a test does not reject. The test uses the score statistic of paired shares (Tango 1998,
Statistics in Medicine 17:891) with its exact distribution instead of the normal one. It depends on the unknown share
gained; the largest p over an exact interval for that share is used, plus the probability that the interval is wrong
(Berger & Boos 1994, JASA 89:1012). With more than CELLS outcomes the normal distribution is used. At 95 % a bound errs
in at most 5.3 % of cases, however few the items (`tests/capabilities/test_netloss.py`). A lower bound is above 0 only
if McNemar's exact test also rejects the hypothesis of no net loss.

Items that share a passage count as fewer items: n is divided by the design effect, and reduced further because few
passages estimate it poorly (Korn & Graubard 1998, Survey Methodology 24:193).

Shapes: n items; X outcomes of lost, Y of gained.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..measuring.estimate import Mean, clustered_mean
from .transitions import Paired

Floats = NDArray[np.float64]
CELLS = 40_000
"""Most pairs of lost and gained counts that are enumerated."""
NUISANCE = 9
"""Number of shares gained at which p is computed."""
OF_ALPHA = 50
"""The interval of the share gained has 1 / OF_ALPHA of the error probability."""
POWER = 0.8
"""Share of cases in which a loss should be detected."""
SPREAD = 7
"""Outcomes more than this many standard deviations away are ignored."""


@dataclass(frozen=True)
class NetLoss:
    """The net loss of a group of items.

    Attributes:
        lost, gained: numbers of items; for scores between 0 and 1, the sums of decreases and of increases.
        n: number of items.
        independent: effective number of independent items.
        mean: the net share lost with its standard error, for scores between 0 and 1; None if all are 0 or 1.
    """

    lost: float
    gained: float
    n: int
    independent: int
    mean: Mean | None = None

    @property
    def value(self) -> float:
        """The net share lost."""
        return (self.lost - self.gained) / self.n

    def repeated(self, times: float) -> NetLoss:
        """The net loss of `times` as many items, lost and gained at the same rates."""
        mean = self.mean and replace(self.mean, se=self.mean.se / math.sqrt(times))
        counts = (self.lost * times, self.gained * times, math.ceil(self.n * times))
        return NetLoss(*counts, max(1, round(self.independent * times)), mean)

    def low(self, confidence: float) -> float:
        """The lower bound of the net share lost, at a one-sided confidence."""
        found = -NetLoss(self.gained, self.lost, self.n, self.independent, _negative(self.mean)).high(confidence)
        return found if self.mean is not None or self._p_none <= 1 - confidence else min(found, 0.0)

    def bounds(self, budget: float, low: float, high: float) -> tuple[float, float]:
        """The lower and the upper bound; each lies beyond the budget only if the test of the budget itself agrees.

        Args:
            budget: the allowed net share lost.
            low, high: confidence of the lower and of the upper bound.
        """
        least, most = self.low(low), self.high(high)
        if self.mean is not None:
            return least, most
        lost, gained = (count * self.independent / self.n for count in (self.lost, self.gained))
        if p_less(gained, lost, self.independent, -budget, (1 - low) / OF_ALPHA) > 1 - low:
            least = min(least, budget)
        if p_less(lost, gained, self.independent, budget, (1 - high) / OF_ALPHA) > 1 - high:
            most = max(most, budget)
        return least, most

    @property
    def _p_none(self) -> float:
        """McNemar's exact one-sided p of no net loss."""
        from scipy.special import betainc

        scale = self.independent / self.n
        return float(betainc(self.lost * scale, self.gained * scale + 1, 0.5)) if self.lost else 1.0

    def high(self, confidence: float) -> float:
        """The upper bound of the net share lost, at a one-sided confidence."""
        if self.mean is None:
            scale = self.independent / self.n
            return upper(self.lost * scale, self.gained * scale, self.independent, confidence)
        if not self.mean.se:  # all changes are equal: the exact bound for 0 of `independent` items
            return min(1.0, self.value + 1 - math.pow(1 - confidence, 1 / self.independent))
        return min(1.0, self.value + self.mean.bound(confidence))


def detectable(gained: float, n: int, budget: float, confidence: float, power: float = POWER) -> float | None:
    """The smallest net share lost that n items show to be over the budget in a share `power` of cases, or None.

    Uses the closed form for paired shares (Connor 1987, Biometrics 43:207), with the budget as the null hypothesis.

    Args:
        gained: share of items gained.
        n: number of independent items.
        budget: the allowed net share lost.
        confidence: confidence of the lower bound.
        power: share of cases in which the loss should be detected.

    Examples:
        >>> round(detectable(0.02, 300, 0.0, 0.95), 3)
        0.041
    """
    from scipy.special import ndtr, ndtri

    z = float(ndtri(confidence))

    def seen(true: float) -> float:
        null = n * (2 * float(likeliest_gained(n * (gained + true), n * gained, n, budget)) + budget * (1 - budget))
        spread = math.sqrt(max(n * (2 * gained + true - true**2), 1e-12))
        return float(ndtr((n * (true - budget) - z * math.sqrt(null)) / spread))

    low, high = budget, 1 - 2 * gained
    if high <= low or seen(high) < power:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) >= power else (middle, high)
    return high


def _negative(mean: Mean | None) -> Mean | None:
    return None if mean is None else Mean(-mean.value, mean.se, mean.n_tokens, mean.n_documents)


def net_loss(pairs: Paired) -> NetLoss:
    """The net loss of paired items.

    If all scores are 0 or 1, replies that begin with the right answer and run on are neither lost nor gained, as in
    `Transitions`.

    Examples:
        >>> found = net_loss(Paired.of([1] * 45 + [0] * 20 + [1] * 435, [0] * 45 + [1] * 20 + [1] * 435))
        >>> found.value, round(found.low(0.95), 3), round(found.high(0.95), 3)
        (0.05, 0.024, 0.077)
    """
    if pairs.binary:
        falls = pairs.lost.astype(np.float64) - pairs.gained
        count = (float(pairs.lost.sum()), float(pairs.gained.sum()))
        return NetLoss(*count, len(pairs), _independent(falls, pairs.clusters))
    falls = pairs.before - pairs.after
    mean = clustered_mean(falls, pairs.clusters)
    sums = (float(np.maximum(falls, 0).sum()), float(np.maximum(-falls, 0).sum()))
    return NetLoss(*sums, len(pairs), mean.n_documents, mean)


def _independent(falls: Floats, clusters: NDArray[Any]) -> int:
    """The number of independent items that would give the same standard error."""
    n, groups = len(falls), len(np.unique(clusters))
    if groups == n:
        return n
    if groups == 1:
        return 1
    clustered, plain = clustered_mean(falls, clusters).se, clustered_mean(falls, np.arange(n)).se
    if not plain:
        return groups
    from scipy.special import ndtri, stdtrit

    unknown = float(ndtri(0.95) / stdtrit(groups - 1, 0.95))
    return max(1, math.floor(n * min(1.0, (plain / clustered) ** 2 if clustered else 1.0) * unknown**2))


@functools.lru_cache(maxsize=256)
def upper(lost: float, gained: float, n: int, confidence: float) -> float:
    """The upper bound of the net share lost: the largest share that the test does not reject.

    Args:
        lost, gained: numbers of items.
        n: number of all items.
        confidence: one-sided confidence.

    Examples:
        >>> round(upper(0, 0, 300, 0.95), 3)  # 3 / n
        0.01
    """
    alpha = 1 - confidence
    low, high = (lost - gained) / n, 1.0
    for _ in range(17):
        middle = (low + high) / 2
        low, high = (middle, high) if p_less(lost, gained, n, middle, alpha / OF_ALPHA) > alpha else (low, middle)
    return high


def p_less(lost: float, gained: float, n: int, share: float, wrong: float) -> float:
    """The p value of the hypothesis that the net share lost is `share`, against a smaller one.

    Args:
        lost, gained: numbers of items.
        n: number of all items.
        share: net share lost, between -1 and 1.
        wrong: error probability of the interval over which the share gained is varied.
    """
    seen = float(score(lost, gained, n, share))
    least, most = _gained_between(gained, n, wrong)
    ends = np.clip([least, most], max(0.0, -share), (1 - share) / 2)
    spans = [_window(n, np.clip(ends + more, 0, 1)) for more in (share, 0.0)]
    if math.prod(len(span) for span in spans) > CELLS:
        from scipy.special import ndtr

        return float(ndtr(seen))
    x, y = spans[0][:, None], spans[1][None, :]
    less = score(x, y, n, share) <= seen + 1e-9
    counts = _log_counts(x, y, n)
    shares = np.linspace(float(ends[0]), float(ends[1]), NUISANCE)
    return wrong + max(float(np.exp(_log_chance(counts, x, y, n, q + share, q)[less]).sum()) for q in shares)


def score(lost: Any, gained: Any, n: int, share: float) -> Any:
    """Tango's score statistic: by how many standard deviations the net loss exceeds a net share lost of `share`.

    Args:
        lost, gained: counts, or arrays of counts.
        n: number of all items.
        share: net share lost, between -1 and 1.

    Examples:
        >>> float(score(30, 14, 100, 0.0)) == (30 - 14) / (30 + 14) ** 0.5  # McNemar's
        True
    """
    variance = n * (2 * likeliest_gained(lost, gained, n, share) + share * (1 - share))
    excess = np.asarray(lost - gained - n * share, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = excess / np.sqrt(variance)
    return np.where(variance > 1e-12, found, np.where(np.abs(excess) < 1e-9, 0.0, np.copysign(np.inf, excess)))


def likeliest_gained(lost: Any, gained: Any, n: int, share: float) -> Any:
    """The maximum-likelihood share gained if the net share lost is `share` (Tango 1998, eq. 4)."""
    b = (2 * n - lost + gained) * share - lost - gained
    inside = b * b + 8 * n * gained * share * (1 - share)
    return np.maximum((np.sqrt(np.maximum(inside, 0.0)) - b) / (4 * n), max(0.0, -share))


def _gained_between(gained: float, n: int, wrong: float) -> tuple[float, float]:
    """The exact interval of the share gained, with error probability `wrong` (Clopper & Pearson 1934)."""
    from scipy.special import betaincinv

    low = 0.0 if gained <= 0 else float(betaincinv(gained, n - gained + 1, wrong / 2))
    high = 1.0 if gained >= n else float(betaincinv(gained + 1, n - gained, 1 - wrong / 2))
    return low, high


def _window(n: int, shares: Floats) -> Floats:
    """The counts that are likely for any share in the given range."""
    low, high = float(shares.min()), float(shares.max())
    first = n * low - SPREAD * math.sqrt(n * low * (1 - low)) - 2 * SPREAD
    last = n * high + SPREAD * math.sqrt(n * high * (1 - high)) + 2 * SPREAD
    return np.arange(max(0, math.floor(first)), min(n, math.ceil(last)) + 1, dtype=np.float64)


def _log_counts(x: Floats, y: Floats, n: int) -> Floats:
    """[X, Y] logarithm of n! / (x! y! (n - x - y)!); minus infinity where x + y > n."""
    from scipy.special import gammaln

    rest = n - x - y
    found = gammaln(n + 1) - gammaln(x + 1) - gammaln(y + 1) - gammaln(np.maximum(rest, 0) + 1)
    return np.where(rest < 0, -np.inf, found)


def _log_chance(counts: Floats, x: Floats, y: Floats, n: int, lost: float, gained: float) -> Floats:
    """[X, Y] logarithm of the probability of each outcome."""
    from scipy.special import xlogy

    rest = np.maximum(n - x - y, 0)
    found: Floats = counts + xlogy(x, max(lost, 0.0)) + xlogy(y, gained) + xlogy(rest, max(1 - lost - gained, 0.0))
    return found

"""Transitions of items from the base model to the tuned one, with paired statistics; numpy and scipy only.

Both models answer the same items, so all statistics are paired, which is far more precise than comparing two averages.
Items that share a passage (a `cluster`) are not independent and count as one draw.

Sources: paired and clustered standard errors, Miller 2024, arXiv:2411.00640, sections 2.2 and 4; exact test, McNemar
1947, Psychometrika 12:153; interval of a share, Wilson 1927, JASA 22:209; forgetting and backward transfer corrected
for chance, Harmon et al. 2025, arXiv:2510.17776.

Shapes: n items, C clusters, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..measuring.estimate import Mean, clustered_mean

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """A share of items with an interval.

    Attributes:
        count, of: number of items in the share, and of all items.
        value: count / of; NaN if `of` is 0.
        low, high: 95 % interval: Wilson's, or from a clustered bootstrap if items share clusters.
    """

    count: int
    of: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Transitions:
    """Numbers of items by transition.

    Attributes:
        kept: right before and after.
        lost: right before, wrong after (1→0).
        gained: wrong before, right after (0→1).
        changed: wrong before and after, with different answers.
        unchanged: wrong before and after, with the same answer.
        runs_on: right before; after, the reply begins with the right answer and runs on, so the metric counts it as
            wrong. Not counted as lost.
        ran_on: the reverse: the base model's reply ran on, the tuned model's is right. Not counted as gained.
    """

    kept: int
    lost: int
    gained: int
    changed: int
    unchanged: int
    runs_on: int = 0
    ran_on: int = 0

    @property
    def n(self) -> int:
        """Number of all items."""
        return self.kept + self.lost + self.gained + self.changed + self.unchanged + self.runs_on + self.ran_on


@dataclass(frozen=True)
class Corrected:
    """A rate of transitions corrected for guessing, with its 95 % bootstrap interval (Harmon et al. 2025).

    Attributes:
        raw: the rate, transitions / n.
        chance: the rate expected from guessing, (1 - acc_before)(1 - acc_after) / (k - 1).
        value: raw - chance, at least 0.
        low, high: interval of `value`.
    """

    raw: float
    chance: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """The answers of two models to the same n items.

    Attributes:
        before, after: [n] scores of the base and the tuned model, between 0 and 1.
        same: [n] bool, whether the answers are equal.
        options: [n] number of options to choose from; 0 for a free answer.
        clusters: [n] integer labels; items with the same label share a passage. Default: a label per item.
        ran_on, runs_on: [n] bool, whether the base and the tuned model's reply, although counted as wrong, begins with
            the right answer and runs on. Default: none does.
    """

    before: Floats
    after: Floats
    same: NDArray[np.bool_]
    options: NDArray[np.int64]
    clusters: NDArray[np.int64]
    ran_on: NDArray[np.bool_]
    runs_on: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        before: Sequence[float] | NDArray[Any],
        after: Sequence[float] | NDArray[Any],
        same: Sequence[bool] | NDArray[Any] | None = None,
        options: Sequence[int] | NDArray[Any] | None = None,
        clusters: Sequence[Any] | NDArray[Any] | None = None,
        ran_on: Sequence[bool] | NDArray[Any] | None = None,
        runs_on: Sequence[bool] | NDArray[Any] | None = None,
    ) -> Paired:
        """Check the arrays and convert them; cluster labels may be of any type.

        Raises:
            UsageError: no items, arrays of different lengths, or scores outside 0 to 1.
        """
        x, y = np.asarray(before, np.float64).ravel(), np.asarray(after, np.float64).ravel()
        n = x.size
        agree = (x == y) if same is None else np.asarray(same, bool).ravel()
        k = np.zeros(n, np.int64) if options is None else np.asarray(options, np.int64).ravel()
        labels = np.arange(n) if clusters is None else np.unique(np.asarray(clusters).ravel(), return_inverse=True)[1]
        on = [np.zeros(n, bool) if given is None else np.asarray(given, bool).ravel() for given in (ran_on, runs_on)]
        sizes = {x.size, y.size, agree.size, k.size, labels.size, *(flags.size for flags in on)}
        if len(sizes) > 1:
            raise UsageError(f"paired items: arrays of different lengths: {sorted(sizes)}")
        if n == 0:
            raise UsageError("paired items: there is no item that both models answered")
        if not ((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)).all():
            raise UsageError("paired items: a score is outside 0 to 1")
        return cls(x, y, agree, k, labels.astype(np.int64), on[0] & (x == 0), on[1] & (y == 0))

    def __len__(self) -> int:
        return len(self.before)

    @property
    def binary(self) -> bool:
        """Whether every score is 0 or 1."""
        return bool(np.isin(self.before, (0.0, 1.0)).all() and np.isin(self.after, (0.0, 1.0)).all())

    @property
    def clustered(self) -> bool:
        """Whether some items share a cluster."""
        return int(self.clusters.max()) + 1 < len(self)

    @property
    def lost(self) -> NDArray[np.bool_]:
        """[n] right before and wrong after, except replies that begin with the right answer and run on."""
        found: NDArray[np.bool_] = (self.before == 1) & (self.after == 0) & ~self.runs_on
        return found

    @property
    def gained(self) -> NDArray[np.bool_]:
        """[n] wrong before and right after, except items where the base model's reply ran on after the right answer."""
        found: NDArray[np.bool_] = (self.before == 0) & (self.after == 1) & ~self.ran_on
        return found

    def take(self, chosen: NDArray[Any]) -> Paired:
        """The items chosen by a mask or by indices."""
        columns = (self.before, self.after, self.same, self.options, self.clusters, self.ran_on, self.runs_on)
        return Paired.of(*(column[chosen] for column in columns))


def difference(pairs: Paired) -> Mean:
    """The change of the mean score, after - before, with its paired and clustered standard error.

    With d_i = after_i - before_i: se = sd(d) / sqrt(n) for independent items (Miller 2024, eq. 7).

    Examples:
        >>> before = np.r_[np.ones(45 + 300), np.zeros(20 + 135)]
        >>> after = np.r_[np.zeros(45), np.ones(300), np.ones(20), np.zeros(135)]
        >>> change = difference(Paired.of(before, after))
        >>> round(change.value, 3), round(change.se, 5)
        (-0.05, 0.01598)
    """
    return clustered_mean(pairs.after - pairs.before, pairs.clusters)


def transitions(pairs: Paired) -> Transitions:
    """Count the items by transition.

    Raises:
        UsageError: scores that are not 0 or 1.
    """
    if not pairs.binary:
        raise UsageError("transitions: scores between 0 and 1 are neither right nor wrong; compare their means")
    before, after = pairs.before == 1, pairs.after == 1
    wrong = ~before & ~after
    return Transitions(
        kept=int((before & after).sum()),
        lost=int(pairs.lost.sum()),
        gained=int(pairs.gained.sum()),
        changed=int((wrong & ~pairs.same).sum()),
        unchanged=int((wrong & pairs.same).sum()),
        runs_on=int((before & pairs.runs_on).sum()),
        ran_on=int((after & pairs.ran_on).sum()),
    )


def mcnemar(lost: float, gained: float) -> float:
    """McNemar's exact two-sided p: the probability of at least as uneven a split of lost and gained by chance.

    Args:
        lost, gained: numbers of items; fractions are effective numbers of independent ones.

    Examples:
        >>> round(mcnemar(45, 20), 6)
        0.002626
        >>> mcnemar(0, 0)
        1.0
    """
    if lost + gained == 0:
        return 1.0
    from scipy.special import betainc

    more, fewer = max(lost, gained), min(lost, gained)
    return min(1.0, 2 * float(betainc(more, fewer + 1, 0.5)))  # twice the binomial tail, also between whole numbers


def wilson(count: int, of: int) -> Share:
    """A share with Wilson's 95 % score interval, which stays within 0 to 1 and has a width even for 0 or all items.

    Examples:
        >>> share = wilson(8, 32)
        >>> round(share.value, 2), round(share.low, 3), round(share.high, 3)
        (0.25, 0.133, 0.421)
    """
    if of == 0:
        return Share(0, 0, math.nan, math.nan, math.nan)
    from scipy.stats import binomtest

    ends = binomtest(count, of).proportion_ci(0.95, method="wilson")
    return Share(count, of, count / of, float(ends.low), float(ends.high))


def share(hits: NDArray[Any], among: NDArray[Any], clusters: NDArray[Any], *, seed: int = 0) -> Share:
    """The share of `hits` among the items of `among`, with a 95 % interval.

    The interval is Wilson's. If items share clusters, it comes from resampling whole clusters; if then all or none are
    hits, it is Wilson's for the number of clusters.

    Args:
        hits: [n] bool.
        among: [n] bool; other items do not count.
        clusters: [n] labels.
        seed: random seed of the bootstrap, which is only used if items share clusters.
    """
    chosen = np.asarray(among, bool)
    inside = np.asarray(hits, bool) & chosen
    plain = wilson(int(inside.sum()), int(chosen.sum()))
    groups = len(np.unique(clusters[chosen]))
    if plain.of == 0 or groups == plain.of:
        return plain
    if plain.count in (0, plain.of):  # all resamples would be equal: use Wilson's interval with one item per cluster
        bounds = wilson(groups if plain.count else 0, groups)
        return Share(plain.count, plain.of, plain.value, bounds.low, bounds.high)
    values = np.stack([inside, chosen], axis=1).astype(np.float64)
    low, high = bootstrap(values, clusters, lambda m: m[:, 0] / np.maximum(m[:, 1], 1e-300), seed=seed)
    return Share(plain.count, plain.of, plain.value, low, high)


def bootstrap(
    values: Floats,
    clusters: NDArray[Any],
    statistic: Callable[[Floats], Floats],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """A percentile interval from resampling whole clusters with replacement.

    Args:
        values: [n, q] quantities of each item.
        clusters: [n] labels.
        statistic: maps [R, q] means of the quantities over resampled items to [R] values.
        resamples: number of resamples, R.
        confidence: nominal coverage of the interval.
        seed: random seed; the same seed gives the same interval.

    Returns:
        Lower and upper end.
    """
    _, which = np.unique(clusters, return_inverse=True)
    count = int(which.max()) + 1
    columns = np.column_stack([values, np.ones(len(values))])
    sums = np.zeros((count, columns.shape[1]))
    np.add.at(sums, which, columns)
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, 200):  # [200, C] weights at a time
        rows = min(200, resamples - start)
        totals = generator.multinomial(count, np.full(count, 1 / count), size=rows) @ sums
        found.append(statistic(totals[:, :-1] / totals[:, -1:]))
    ends = np.quantile(np.concatenate(found), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(ends[0]), float(ends[1])


def corrected(pairs: Paired, *, seed: int = 0) -> tuple[Corrected, Corrected]:
    """Forgetting n(1→0)/n and backward transfer n(0→1)/n, each corrected for guessing, and at least 0.

    A model that does not know an item guesses one of k options, so two such models differ by chance: the rate of
    changes from right to wrong by chance is (1 - acc_before)(1 - acc_after)/(k - 1) (Harmon et al. 2025). For free
    answers the chance term is 0. If items differ in k, 1/(k - 1) is averaged over them. Replies that begin with the
    right answer and run on are neither forgotten nor gained.

    Returns:
        Forgetting, backward transfer.

    Raises:
        UsageError: scores that are not 0 or 1, or an item with only one option.
    """
    if not pairs.binary:
        raise UsageError("chance correction: scores must be 0 or 1")
    if (pairs.options == 1).any():
        raise UsageError("chance correction: an item has only one option, so there is no choice")
    luck = np.where(pairs.options > 1, 1 / np.maximum(pairs.options - 1, 1), 0.0)
    values = np.stack([pairs.lost, pairs.gained, pairs.before, pairs.after, luck], axis=1)

    def chance(means: Floats) -> Floats:
        result: Floats = (1 - means[:, 2]) * (1 - means[:, 3]) * means[:, 4]
        return result

    def one(column: int) -> Corrected:
        def net(means: Floats) -> Floats:
            return np.maximum(means[:, column] - chance(means), 0.0)

        means = values.mean(axis=0)[None]
        low, high = bootstrap(values, pairs.clusters, net, seed=seed)
        return Corrected(float(means[0, column]), float(chance(means)[0]), float(net(means)[0]), low, high)

    return one(0), one(1)


def kappa(first: Sequence[Any], second: Sequence[Any]) -> float:
    """Cohen's kappa of two judges of the same items: agreement beyond chance; NaN if both always give the same label.

    Source: Cohen 1960, Educational and Psychological Measurement 20:37.

    Examples:
        >>> round(kappa([1, 1, 0, 0], [1, 0, 0, 0]), 3)
        0.5
    """
    a, b = np.asarray(first), np.asarray(second)
    observed = float((a == b).mean())
    expected = float(sum((a == label).mean() * (b == label).mean() for label in np.unique(np.concatenate([a, b]))))
    return math.nan if expected >= 1 else (observed - expected) / (1 - expected)

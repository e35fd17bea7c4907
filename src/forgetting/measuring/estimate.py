"""Means over tokens and their standard errors, clustered by document; p-values of multiple tests; numpy and scipy only.

Neighbouring tokens belong to the same document, so their losses are correlated. Treating them as independent would make
standard errors several times too small. The document is the unit that was sampled.

Source: the ratio estimator of cluster sampling (Cochran 1977, Sampling Techniques, eq. 6.8 and 9A.2), which is the
clustered standard error that Miller 2024, arXiv:2411.00640, eq. 4 recommends for evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..display.numbers import fixed, several
from ..errors import UsageError


@dataclass(frozen=True)
class Mean:
    """A mean over tokens with its standard error.

    Attributes:
        value: the mean over all tokens, in the unit of the values (nats/token for losses).
        se: its standard error, clustered by document; NaN for a single document, which does not show how documents
            differ.
        n_tokens: number of tokens averaged.
        n_documents: number of documents that they come from.
    """

    value: float
    se: float
    n_tokens: int
    n_documents: int

    @property
    def se_text(self) -> str:
        """The standard error as text, or `unknown`."""
        return fixed(self.se) if math.isfinite(self.se) else "unknown"

    @property
    def extent(self) -> str:
        """How much text it covers, such as `1,200 tokens in 1 document`."""
        return f"{several(self.n_tokens, 'token')} in {several(self.n_documents, 'document')}"

    def bound(self, confidence: float) -> float:
        """The one-sided half-width: value + bound is the upper confidence bound, value - bound the lower one.

        Student's t with n_documents - 1 degrees of freedom; infinite if the standard error is unknown.
        """
        if math.isnan(self.se):
            return math.inf
        from scipy.special import stdtrit

        return float(stdtrit(self.n_documents - 1, confidence)) * self.se

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Lower and upper end of the two-sided confidence interval."""
        half = self.bound(0.5 + confidence / 2)
        return self.value - half, self.value + half


def clustered_mean(values: NDArray[Any], documents: NDArray[Any]) -> Mean:
    """The mean over tokens, and its cluster-robust standard error by document.

    With x_ij the value of token j in document i, n tokens in all and D documents:

        mean = sum_ij x_ij / n
        se^2 = D/(D-1) * sum_i (sum_j (x_ij - mean))^2 / n^2

    Documents may differ in their number of tokens; this is the ratio estimator's linearised variance. For documents of
    one token each it is the textbook s/sqrt(n).

    Args:
        values: [N] numbers or booleans, one per token.
        documents: [N] integers, the document of each token; any labels in any order.

    Raises:
        UsageError: no tokens, or arrays of different lengths.

    Examples:
        >>> import numpy as np
        >>> mean = clustered_mean(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 1, 2, 3]))
        >>> mean.value, round(mean.se, 4)
        (2.5, 0.6455)
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    labels = np.asarray(documents).ravel()
    if x.size != labels.size:
        raise UsageError(f"a mean needs one document per value, got {x.size} values and {labels.size} documents")
    if x.size == 0:
        raise UsageError("no tokens to average: the text has no predicted position")
    value = float(x.mean())
    _, which = np.unique(labels, return_inverse=True)
    residuals = np.bincount(which, weights=x - value)
    count = len(residuals)
    if count == 1:
        return Mean(value, math.nan, x.size, 1)
    variance = count / (count - 1) * float(residuals @ residuals) / x.size**2
    return Mean(value, math.sqrt(variance), x.size, count)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p (step-down): if those below a level are rejected, any false rejection is at most that likely.

    NaN stays NaN and does not count as a test.

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    out = [math.nan] * len(p)
    tested = sorted((value, i) for i, value in enumerate(p) if math.isfinite(value))
    largest = 0.0
    for place, (value, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - place) * value))
        out[i] = largest
    return out

"""Clustered means against closed forms, a slow twin, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forgetting.errors import UsageError
from forgetting.measuring.estimate import clustered_mean


def twin(values, documents):
    """Sums by document in plain loops."""
    mean = sum(values) / len(values)
    sums = {}
    for x, d in zip(values, documents, strict=True):
        sums[d] = sums.get(d, 0.0) + (x - mean)
    count = len(sums)
    return mean, math.sqrt(count / (count - 1) * sum(s * s for s in sums.values())) / len(values)


def test_one_token_a_document_is_the_textbook_standard_error():
    x = np.random.default_rng(0).normal(size=50)
    mean = clustered_mean(x, np.arange(50))
    assert mean.value == pytest.approx(x.mean(), rel=1e-14)
    assert mean.se == pytest.approx(x.std(ddof=1) / math.sqrt(50), rel=1e-12)


def test_equal_documents_are_the_standard_error_of_their_means():
    x = np.random.default_rng(1).normal(size=(12, 30))
    mean = clustered_mean(x.ravel(), np.repeat(np.arange(12), 30))
    assert mean.se == pytest.approx(x.mean(1).std(ddof=1) / math.sqrt(12), rel=1e-12)
    assert (mean.n_tokens, mean.n_documents) == (360, 12)


def test_uneven_documents_equal_the_slow_twin_in_any_order():
    rng = np.random.default_rng(2)
    documents = rng.integers(0, 9, 200) * 7
    x = rng.normal(size=200) + documents
    value, se = twin(x.tolist(), documents.tolist())
    mean = clustered_mean(x, documents)
    assert (mean.value, mean.se) == pytest.approx((value, se), rel=1e-12)
    shuffle = rng.permutation(200)
    again = clustered_mean(x[shuffle], documents[shuffle])
    assert (again.value, again.se) == pytest.approx((value, se), rel=1e-12)


def test_repeating_every_token_changes_nothing():
    """Repeated tokens add no information; a naive standard error would shrink by sqrt(10)."""
    x = np.random.default_rng(3).normal(size=40)
    once, ten = clustered_mean(x, np.arange(40)), clustered_mean(np.repeat(x, 10), np.repeat(np.arange(40), 10))
    assert ten.se == pytest.approx(once.se, rel=1e-12)


def test_booleans_and_float32_are_averaged_in_float64():
    x = np.full(3_000_000, 0.1, np.float32)
    assert clustered_mean(x, np.zeros(len(x), np.int32)).value == pytest.approx(float(np.float32(0.1)), rel=1e-12)
    assert clustered_mean(np.array([True, False]), np.array([0, 1])).value == 0.5


def test_how_much_text_is_said_in_whole_words():
    assert clustered_mean(np.zeros(1200), np.zeros(1200)).extent == "1,200 tokens in 1 document"
    assert clustered_mean(np.zeros(2), np.arange(2)).extent == "2 tokens in 2 documents"


def test_one_document_has_no_standard_error_and_an_infinite_interval():
    mean = clustered_mean(np.array([1.0, 2.0]), np.array([4, 4]))
    assert math.isnan(mean.se)
    assert mean.interval() == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("values", "documents", "message"), [([], [], "no tokens"), ([1.0, 2.0], [0], "2 values and 1 documents")]
)
def test_refusals(values, documents, message):
    with pytest.raises(UsageError, match=message):
        clustered_mean(np.array(values), np.array(documents))


@pytest.mark.parametrize("documents", [30, 60])
def test_the_interval_covers_the_truth(documents):
    """1,000 corpora of correlated documents of very unequal length: the 95 % interval covers in 93-97 % of them."""
    rng = np.random.default_rng(17)
    covered = 0
    for _ in range(1000):
        lengths = 20 + rng.poisson(60, documents)
        labels = np.repeat(np.arange(documents), lengths)
        subject = rng.normal(0, 0.5, documents)[labels]  # what a document's tokens share
        low, high = clustered_mean(2.0 + subject + rng.normal(0, 1, len(labels)), labels).interval(0.95)
        covered += low <= 2.0 <= high
    assert 930 <= covered <= 970

"""Where a model forgot: the loss change by position in the window, by token frequency, by document and by token.

The loss change at a position is its excess forgetting: -log p_tuned(base's top token) + log p_base(it), nats.

Shapes: N predicted positions, in the order of the windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.windows import Windows
from .estimate import Mean, clustered_mean

MIN_COUNT = 5
"""Minimum number of predictions of a listed token; rarer ones would top any list by chance."""


@dataclass(frozen=True)
class Group:
    """Positions with something in common, and their mean loss change."""

    label: str
    change: Mean


@dataclass(frozen=True)
class Passage:
    """One window, token by token.

    Attributes:
        document: its document's name.
        token_ids: [t] its tokens.
        change: [t] loss change at each, nats; NaN where the token is not predicted.
        expected: [t] the base model's top token at each; -1 where not predicted.
    """

    document: str
    token_ids: NDArray[np.int32]
    change: NDArray[np.float32]
    expected: NDArray[np.int32]

    @property
    def mean(self) -> float:
        """Mean loss change of its predicted tokens."""
        return float(np.nanmean(self.change))


@dataclass(frozen=True)
class Where:
    """The breakdowns of one measurement; every group's standard error is clustered by document."""

    by_position: list[Group]
    by_frequency: list[Group]
    by_document: list[Group]
    by_token: list[tuple[int, Mean]]
    passages: list[Passage]


def where(
    windows: Windows, change: NDArray[Any], argmax: NDArray[Any], *, n_documents: int = 20, n_tokens: int = 20
) -> Where:
    """Break a measurement down.

    Args:
        windows: the text.
        change: [N] loss change, nats.
        argmax: [N] the base model's top tokens.
        n_documents: how many documents to list, those that changed most first.
        n_tokens: the same for tokens, at most 100.
    """
    documents = windows.token_documents()
    positions = _positions(windows)
    tokens = windows.input_ids[windows.predicted]
    counts = np.bincount(tokens)[tokens]
    largest = _by_document(windows, change, documents)
    return Where(
        by_position=_powers(positions, change, documents, 2),
        by_frequency=_powers(counts, change, documents, 4),
        by_document=largest[:n_documents],
        by_token=_by_token(change, argmax, documents)[:n_tokens],
        passages=_passages(windows, change, argmax),
    )


def _positions(windows: Windows) -> NDArray[np.int64]:
    """[N] number of tokens before each predicted one in its window."""
    starts = np.repeat(windows.offsets[:-1], windows.lengths)
    result: NDArray[np.int64] = (np.arange(len(windows.input_ids)) - starts)[windows.predicted]
    return result


def _powers(values: NDArray[Any], change: NDArray[Any], documents: NDArray[Any], base: int) -> list[Group]:
    """Groups of values by powers of `base`: 1, 2-3, 4-7, ... for base 2."""
    exponents = np.floor(np.log(values) / np.log(base) + 1e-9).astype(int)
    groups = []
    for exponent in range(int(exponents.max()) + 1):
        inside = exponents == exponent
        if inside.any():
            low, high = base**exponent, base ** (exponent + 1) - 1
            label = f"{low}" if low == high else f"{low}–{high}"
            groups.append(Group(label, clustered_mean(change[inside], documents[inside])))
    return groups


def _by_document(windows: Windows, change: NDArray[Any], documents: NDArray[Any]) -> list[Group]:
    """Every document's mean change, largest first. The standard error of one document is NaN."""
    totals = np.bincount(documents, weights=change, minlength=len(windows.document_ids))
    counts = np.bincount(documents, minlength=len(windows.document_ids))
    present = np.flatnonzero(counts)
    means = totals[present] / counts[present]
    return [
        Group(windows.document_ids[present[i]], Mean(float(means[i]), float("nan"), int(counts[present[i]]), 1))
        for i in np.argsort(-means, kind="stable")
    ]


def _by_token(change: NDArray[Any], argmax: NDArray[Any], documents: NDArray[Any]) -> list[tuple[int, Mean]]:
    """Expected tokens (the base's top token) by mean change, largest first; at most 100."""
    counts = np.bincount(argmax)
    frequent = np.flatnonzero(counts >= MIN_COUNT)
    means = np.bincount(argmax, weights=change)[frequent] / counts[frequent]
    listed = []
    for token in frequent[np.argsort(-means, kind="stable")][:100]:
        inside = argmax == token
        listed.append((int(token), clustered_mean(change[inside], documents[inside])))
    return listed


def _passages(windows: Windows, change: NDArray[Any], argmax: NDArray[Any]) -> list[Passage]:
    """The three windows that changed most, and the median one, among those at least half as long as the longest."""
    counts = windows.targets
    owner = np.repeat(np.arange(len(windows)), counts)
    means = np.bincount(owner, weights=change, minlength=len(windows)) / np.maximum(counts, 1)
    long = np.flatnonzero(counts >= max(1, int(counts.max()) // 2))
    order = long[np.argsort(-means[long], kind="stable")]
    chosen: Sequence[int] = [*order[:3], *([order[len(order) // 2]] if len(order) > 6 else [])]
    return [_passage(windows, int(index), change, argmax) for index in chosen]


def _passage(windows: Windows, index: int, change: NDArray[Any], argmax: NDArray[Any]) -> Passage:
    span = slice(windows.offsets[index], windows.offsets[index + 1])
    ids, predicted = windows.window(index)
    first = int(windows.predicted[: span.start].sum())
    part = slice(first, first + int(predicted.sum()))
    values = np.full(len(ids), np.nan, np.float32)
    values[predicted] = change[part]
    expected = np.full(len(ids), -1, np.int32)
    expected[predicted] = argmax[part]
    return Passage(windows.document_ids[windows.documents[index]], ids, values, expected)

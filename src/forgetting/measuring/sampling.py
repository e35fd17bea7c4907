"""How much text to measure: all of it, or whole documents in a seeded order until the standard error is small enough.

Shapes: N predicted positions of all documents measured so far, in the order of `windows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.windows import Windows
from .estimate import clustered_mean

FIRST_TOKENS = 8192
FIRST_DOCUMENTS = 8
"""A standard error over fewer documents is too rough to stop on."""


@dataclass(frozen=True)
class Sampled:
    """What was measured.

    Attributes:
        windows: the windows of the documents measured.
        values: name -> [N] values.
        complete: whether all of the text was measured.
    """

    windows: Windows
    values: dict[str, NDArray[Any]]
    complete: bool


def until(
    windows: Windows,
    measure: Callable[[Windows], dict[str, NDArray[Any]]],
    name: str,
    tolerance: float | None,
    seed: int,
) -> Sampled:
    """Measure more and more whole documents until the standard error of `name`'s mean is below the tolerance.

    The next round has as many documents as the standard error so far says are needed, and at least a quarter more than
    there are: few looks, so that stopping at a lucky one is rare.

    Args:
        windows: all of the text.
        measure: windows -> name -> [n] values; called with each round's windows.
        tolerance: standard error to reach, in the unit of the values; None measures all of the text at once.
        seed: of the order of documents.
    """
    if tolerance is None:
        return Sampled(windows, measure(windows), True)
    taken: list[NDArray[np.int64]] = []
    parts: list[dict[str, NDArray[Any]]] = []
    documents = _Documents(windows, seed)
    wanted = FIRST_TOKENS
    while True:
        indices = documents.take(wanted)
        taken.append(indices)
        parts.append(measure(windows.select(indices)))
        sample = windows.select(np.concatenate(taken))
        values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        mean = clustered_mean(values[name], sample.token_documents())
        enough = mean.n_documents >= FIRST_DOCUMENTS and mean.se <= tolerance
        if enough or documents.left == 0:
            return Sampled(sample, values, documents.left == 0)
        needed = mean.n_tokens * (mean.se / tolerance) ** 2 * 1.1 if mean.n_documents > 1 else 0
        wanted = int(np.clip(needed, 1.25 * mean.n_tokens, 4 * mean.n_tokens)) - mean.n_tokens


class _Documents:
    """The documents of a text in a seeded order, handed out whole."""

    def __init__(self, windows: Windows, seed: int) -> None:
        self.by_document = list(_windows_by_document(windows))
        order = np.random.default_rng([seed, 20240110]).permutation(len(self.by_document))
        self.order = list(order)
        self.first = True

    @property
    def left(self) -> int:
        return len(self.order)

    def take(self, tokens: int) -> NDArray[np.int64]:
        """Window indices of the next documents with at least these many predicted tokens together."""
        least = FIRST_DOCUMENTS if self.first else 1
        self.first = False
        found: list[NDArray[np.int64]] = []
        total = 0
        while self.order and (total < tokens or len(found) < least):
            indices, count = self.by_document[self.order.pop(0)]
            found.append(indices)
            total += count
        return np.concatenate(found)


def _windows_by_document(windows: Windows) -> Iterator[tuple[NDArray[np.int64], int]]:
    """(window indices, predicted tokens) of each document, in the order of their first windows."""
    counts = np.add.reduceat(windows.predicted.astype(np.int64), windows.offsets[:-1])
    order = np.argsort(windows.documents, kind="stable")
    labels, starts = np.unique(windows.documents[order], return_index=True)
    for i in range(len(labels)):
        stop = starts[i + 1] if i + 1 < len(labels) else len(order)
        indices = order[starts[i] : stop]
        yield indices.astype(np.int64), int(counts[indices].sum())

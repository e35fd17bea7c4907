"""How much text to measure: all of it, or whole documents in a seeded order until the standard error is small enough.

Shapes: N predicted positions of all documents measured so far, in the order of `windows`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.tokenizing import Encoded
from ..data.untokenized import Untokenized
from ..data.windows import Windows
from .estimate import clustered_mean

FIRST_TOKENS = 8192
AHEAD = 128
"""Documents tokenised at once."""
FIRST_DOCUMENTS = 8
"""Minimum documents before stopping; a standard error over fewer is too rough."""


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
    text: Windows | Untokenized,
    measure: Callable[[Windows], dict[str, NDArray[Any]]],
    name: str,
    tolerance: float | None,
    seed: int,
) -> Sampled:
    """Measure more and more whole documents until the standard error of `name`'s mean is at most the tolerance.

    Each round measures as many more tokens as the current standard error says are needed; the total becomes 1.25 to 4
    times as large. Checking only a few times makes it unlikely to stop at a standard error that is small by chance.

    Args:
        text: all of it.
        measure: windows -> name -> [n] values; called with each round's windows.
        tolerance: standard error to reach, in the unit of the values; None measures all of the text at once.
        seed: seed of the order of documents.
    """
    if tolerance is None:
        windows = text if isinstance(text, Windows) else text.whole()
        return Sampled(windows, measure(windows), True)
    documents = in_random_order(text, seed)
    parts: list[dict[str, NDArray[Any]]] = []
    wanted = FIRST_TOKENS
    while True:
        parts.append(measure(documents.take(wanted)))
        sample = documents.taken()
        values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        mean = clustered_mean(values[name], sample.token_documents())
        enough = mean.n_documents >= FIRST_DOCUMENTS and mean.se <= tolerance
        if enough or documents.left == 0:
            return Sampled(sample, values, documents.left == 0)
        needed = mean.n_tokens * (mean.se / tolerance) ** 2 * 1.1 if mean.n_documents > 1 else 0
        wanted = int(np.clip(needed, 1.25 * mean.n_tokens, 4 * mean.n_tokens)) - mean.n_tokens


def in_random_order(text: Windows | Untokenized, seed: int) -> _InOrder:
    """The documents of a text that have a target, in a seeded order, handed out whole."""
    return _OfWindows(text, seed) if isinstance(text, Windows) else _OfTexts(text, seed)


class _InOrder(ABC):
    """Documents in a random order, which is the same whether or not their tokens are known yet."""

    def __init__(self, documents: int, seed: int) -> None:
        self.order = np.random.default_rng([seed, 20240110]).permutation(documents)
        self.given = 0

    @property
    def left(self) -> int:
        """Number of documents not handed out yet."""
        return len(self.order) - self.given

    def take(self, tokens: int) -> Windows:
        """The next documents, with at least this many targets in total."""
        least = FIRST_DOCUMENTS if self.given == 0 else 1
        first, total = self.given, 0
        while self.left and (total < tokens or self.given - first < least):
            total += self.targets(self.given)
            self.given += 1
        return self.windows(first, self.given)

    def taken(self) -> Windows:
        """All documents handed out so far."""
        return self.windows(0, self.given)

    @abstractmethod
    def targets(self, number: int) -> int:
        """Number of targets of the document at this index of the order."""

    @abstractmethod
    def windows(self, first: int, end: int) -> Windows:
        """The documents from `first` to `end` of the order."""


class _OfWindows(_InOrder):
    def __init__(self, text: Windows, seed: int) -> None:
        self.text = text
        with_target = np.flatnonzero(text.targets)
        self.by_document = with_target[np.argsort(text.documents[with_target], kind="stable")]
        labels, self.starts = np.unique(text.documents[self.by_document], return_index=True)
        self.stops = np.append(self.starts[1:], len(self.by_document))
        self.counts = np.add.reduceat(text.targets[self.by_document], self.starts)
        super().__init__(len(labels), seed)

    def targets(self, number: int) -> int:
        return int(self.counts[self.order[number]])

    def windows(self, first: int, end: int) -> Windows:
        spans = [self.by_document[self.starts[i] : self.stops[i]] for i in self.order[first:end]]
        return self.text.select(np.concatenate([np.zeros(0, np.int64), *spans]))


class _OfTexts(_InOrder):
    def __init__(self, text: Untokenized, seed: int) -> None:
        super().__init__(len(text.present), seed)
        self.text = text
        self.places = text.present[self.order]
        self.encoded: list[list[Encoded]] = []

    def targets(self, number: int) -> int:
        if number == len(self.encoded):  # tokenise some ahead, using all cores
            self.encoded += self.text.encoded(self.places[number : number + AHEAD])
        return sum(len(ids) - 1 for ids, _ in self.encoded[number])

    def windows(self, first: int, end: int) -> Windows:
        return self.text.windows(self.places[first:end], self.encoded[first:end])

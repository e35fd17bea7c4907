"""Token windows that keep track of their document: what text is turned into, measured on and trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .padding import IGNORED

BLOCK = 2**14
"""Windows that are counted at a time."""


@dataclass(frozen=True)
class Windows:
    """W windows of at most `context` tokens, each within one document.

    Position t of a window is *predicted* if its token is a target of the loss, given the tokens before it in the same
    window; the first position of a window never is.

    Attributes:
        input_ids: [T] int32, the tokens of all windows in sequence.
        predicted: [T] bool, which tokens are targets.
        offsets: [W + 1] int64; window w is input_ids[offsets[w]:offsets[w + 1]].
        documents: [W] int32, the document of each window, an index into document_ids.
        document_ids: names of the D documents; the sequence may read them when they are first needed.
        notices: what was cut or left out to make them, for the report; not part of the fingerprint.
        first_copy: for each of the D documents, the first with the same content, usually itself; empty if all differ.
            Copies are not independent documents.
    """

    input_ids: NDArray[np.int32]
    predicted: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    documents: NDArray[np.int32]
    document_ids: Sequence[str]
    notices: tuple[str, ...] = ()
    first_copy: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[W] number of tokens in each window."""
        return np.diff(self.offsets)

    @property
    def n_predicted(self) -> int:
        """Number of targets, the tokens that a mean loss is taken over."""
        return int(np.count_nonzero(self.predicted))

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """[W] number of targets in each window."""
        counts = np.zeros(len(self), np.int64)
        # in blocks: a running sum of all tokens takes eight times the memory of their mask
        for first in range(0, len(self), BLOCK):
            edges = self.offsets[first : first + BLOCK + 1]
            before = np.concatenate([[0], np.cumsum(self.predicted[edges[0] : edges[-1]], dtype=np.int64)])
            counts[first : first + BLOCK] = np.diff(before[edges - edges[0]])
        return counts

    def window(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Tokens and predicted mask of one window, each [length]."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.input_ids[span], self.predicted[span]

    def labels(self, index: int) -> NDArray[np.int32]:
        """Tokens of one window, with IGNORED where they are not predicted."""
        ids, predicted = self.window(index)
        return np.where(predicted, ids, np.int32(IGNORED))

    @property
    def n_documents(self) -> int:
        """Number of different documents with a target; copies count once."""
        return len(np.unique(self.distinct[self.targets > 0]))

    @property
    def distinct(self) -> NDArray[np.int32]:
        """[W] the document of each window, for copies the first one."""
        return np.asarray(self.first_copy, np.int32)[self.documents] if self.first_copy else self.documents

    @property
    def largest(self) -> int:
        """The largest token id; 0 if there are no tokens."""
        return int(self.input_ids.max(initial=0))

    def token_documents(self) -> NDArray[np.int32]:
        """[n_predicted] the document of each target, for copies the first one, in the order of the windows."""
        return np.repeat(self.distinct, self.lengths)[self.predicted]

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Windows:
        """The windows at `indices`, in that order; document ids stay complete."""
        spans = [slice(self.offsets[i], self.offsets[i + 1]) for i in indices]
        empty_ids, empty_mask = np.zeros(0, np.int32), np.zeros(0, bool)
        return Windows(
            input_ids=np.concatenate([empty_ids, *(self.input_ids[s] for s in spans)]),
            predicted=np.concatenate([empty_mask, *(self.predicted[s] for s in spans)]),
            offsets=np.concatenate([[0], np.cumsum([s.stop - s.start for s in spans], dtype=np.int64)]).astype(
                np.int64
            ),
            documents=self.documents[np.asarray(indices, dtype=np.int64)],
            document_ids=self.document_ids,
            notices=self.notices,
            first_copy=self.first_copy,
        )

    def joined(self, other: Windows) -> Windows:
        """These windows followed by the others; their documents stay separate."""
        mine, theirs = len(self.document_ids), len(other.document_ids)
        copies = [*(self.first_copy or range(mine)), *(mine + i for i in other.first_copy or range(theirs))]
        return Windows(
            input_ids=np.concatenate([self.input_ids, other.input_ids]),
            predicted=np.concatenate([self.predicted, other.predicted]),
            offsets=np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]]),
            documents=np.concatenate([self.documents, other.documents + mine]).astype(np.int32),
            document_ids=(*self.document_ids, *other.document_ids),
            notices=(*self.notices, *other.notices),
            first_copy=tuple(copies) if self.first_copy or other.first_copy else (),
        )

    def sample(self, max_tokens: int | None, *, seed: int = 0) -> Windows:
        """A seeded random sample of windows with about `max_tokens` targets; all windows if None.

        Samples windows rather than whole documents: every window then has the same chance, so a mean over the sample
        is unbiased for the whole text, and the sample has as many documents as possible, which a standard error
        clustered by document needs. The windows keep their original order. At least two documents are included if
        there are two that differ, since one document has no standard error.
        """
        if max_tokens is None or self.n_predicted <= max_tokens:
            return self
        order = np.random.default_rng(seed).permutation(len(self))
        chosen = order[: int(np.searchsorted(np.cumsum(self.targets[order]), max_tokens)) + 1]
        documents = self.distinct
        others = order[documents[order] != documents[order[0]]]
        if len(others) and np.all(documents[chosen] == documents[order[0]]):
            chosen = np.append(chosen, others[0])
        return self.select(np.sort(chosen))

    def fingerprint(self) -> str:
        """A sha256 over tokens, masks, windows and documents: equal fingerprints mean equal measurements."""
        return self._fingerprint

    def known_as(self, fingerprint: str) -> Windows:
        """These windows with a known fingerprint; a copy with other tokens computes its own."""
        self.__dict__["_fingerprint"] = fingerprint
        return self

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for array in (self.input_ids, self.predicted, self.offsets, self.documents):
            digest.update(np.ascontiguousarray(array).data)
            digest.update(b"|")
        return digest.hexdigest()


def training_order(n_windows: int, n_samples: int, seed: int) -> NDArray[np.int64]:
    """[n_samples] window indices: whole passes over the data, each in its own random order.

    The order depends only on the seed, so all methods and ranks of one seed see the same batches.
    """
    generator = np.random.default_rng([seed, 20240110])
    left = range(n_samples, 0, -n_windows)  # samples left at the start of each pass
    return np.concatenate([generator.permutation(n_windows)[:most] for most in left])  # a copy: no pass stays in memory

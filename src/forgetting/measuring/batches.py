"""Groups windows of similar length into batches. Pure numpy; depends only on the windows and the batch size.

Shapes: B windows of a batch, L tokens of the longest one, N predicted positions of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.padding import right_padded
from ..data.windows import Windows


@dataclass(frozen=True)
class Batch:
    """B windows side by side, padded on the right to the longest (`data.padding`). Padded positions are never read.

    Attributes:
        input_ids: [B, L] int64; padding is token 0.
        mask: [B, L] bool, true on real tokens.
        source: [N] int64, flat index into [B, L] of the position whose *next* token is predicted. The logits at
            position t predict token t + 1; this is the only place that shifts.
        token: [N] int64, the true next token.
        place: [N] int64, index of each predicted position among all predicted positions of the windows.
    """

    input_ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    source: NDArray[np.int64]
    token: NDArray[np.int64]
    place: NDArray[np.int64]


def plan(windows: Windows, batch_tokens: int) -> list[NDArray[np.int64]]:
    """Window indices of each batch: longest first, ties in order, B x L at most `batch_tokens` (at least one window).

    The longest come first so that a batch that does not fit in memory fails immediately.
    """
    lengths = windows.lengths
    order = np.argsort(-lengths, kind="stable")
    groups: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        stop = start + max(1, batch_tokens // longest)
        groups.append(order[start:stop])
        start = stop
    return groups


def build(windows: Windows, indices: NDArray[np.int64]) -> Batch:
    """The batch of the windows at `indices`."""
    parts = [windows.window(int(index)) for index in indices]
    padded = right_padded([ids for ids, _ in parts], pad=0)
    input_ids = padded["input_ids"]
    longest = input_ids.shape[1]
    before = np.concatenate([[0], np.cumsum(windows.predicted)])  # number of predicted positions before each token
    sources, places = [], []
    for row, (index, (_, predicted)) in enumerate(zip(indices, parts, strict=True)):
        at = np.flatnonzero(predicted)
        sources.append(row * longest + at - 1)
        places.append(before[windows.offsets[index]] + np.arange(len(at)))
    source = np.concatenate(sources).astype(np.int64)
    mask = padded["attention_mask"].astype(bool)
    return Batch(input_ids, mask, source, input_ids.ravel()[source + 1], np.concatenate(places).astype(np.int64))

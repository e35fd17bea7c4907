"""Pads rows of tokens on the right; no other module of the package pads. Pure numpy.

With right padding, a causal model computes every real position as if there were no padding: positions count from 0,
and no padding comes before a real position.

Shapes: B rows, L tokens in the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

IGNORED = -100
"""The label of a position that is not predicted; transformers leaves it out of the loss."""


def right_padded(
    rows: Sequence[ArrayLike], pad: int, *, labels: Sequence[ArrayLike] | None = None, width: int | None = None
) -> dict[str, NDArray[np.int64]]:
    """The inputs of a causal model.

    Args:
        rows: token ids.
        pad: the token that fills up shorter rows; it is masked.
        labels: labels of each row, as many as its tokens; filled up with IGNORED.
        width: L, if it should be larger than the longest row.

    Returns:
        `input_ids` and `attention_mask` (1 on real tokens), and `labels` if given; each [B, L] int64.

    Examples:
        >>> right_padded([[5, 6, 7], [8]], pad=0)["attention_mask"].tolist()
        [[1, 1, 1], [1, 0, 0]]
    """
    arrays = [np.asarray(row, np.int64) for row in rows]
    if width is None:
        width = max(map(len, arrays))
    batch = {"input_ids": _filled(arrays, pad, width)}
    batch["attention_mask"] = _filled([np.ones(len(row), np.int64) for row in arrays], 0, width)
    if labels is not None:
        wanted = [np.asarray(row, np.int64) for row in labels]
        if list(map(len, wanted)) != list(map(len, arrays)):
            raise AssertionError("labels and rows have different lengths")
        batch["labels"] = _filled(wanted, IGNORED, width)
    return batch


def _filled(rows: Sequence[NDArray[np.int64]], fill: int, width: int) -> NDArray[np.int64]:
    whole = np.full((len(rows), width), fill, np.int64)
    for target, row in zip(whole, rows, strict=True):
        target[: len(row)] = row
    return whole

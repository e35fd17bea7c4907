"""Adds a LoRA layer's change to its output on a GPU with one rounding, with Triton.

The GPU's own library rounds the product to bfloat16 before it adds, and rounds again after it has added.

Shapes: N tokens, r rank.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128
"""Rows and columns of the output at once."""


def add(y: Tensor, low: Tensor, b: Tensor) -> None:
    """y + low B^T in place, summed in float32 and rounded once.

    Args:
        y: [N, outputs] bfloat16, contiguous.
        low: [N, r] float32, contiguous.
        b: [outputs, 2 r] bfloat16, contiguous: `products.halves` of B.
    """
    count, outputs = y.shape
    rank = low.shape[1]
    at_once = min(64, max(16, triton.next_power_of_2(rank)))
    grid = triton.cdiv(count, BLOCK), triton.cdiv(outputs, BLOCK)
    with torch.cuda.device(y.device):
        _add[grid](y, low, b, count, outputs, rank, BLOCK=BLOCK, RANKS=at_once, num_warps=8)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _add(  # type: ignore[no-untyped-def]
    y, low, b, count, outputs, rank: tl.constexpr, BLOCK: tl.constexpr, RANKS: tl.constexpr
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    change = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, rank, RANKS):
        ranks = start + tl.arange(0, RANKS)
        inside = (rows < count)[:, None] & (ranks < rank)[None, :]
        u = tl.load(low + rows.to(tl.int64)[:, None] * rank + ranks[None, :], mask=inside, other=0.0)
        high = u.to(tl.bfloat16)
        rest = (u - high.to(tl.float32)).to(tl.bfloat16)
        inside = (columns < outputs)[None, :] & (ranks < rank)[:, None]
        at = b + columns.to(tl.int64)[None, :] * (2 * rank) + ranks[:, None]
        b_high = tl.load(at, mask=inside, other=0.0)
        b_rest = tl.load(at + rank, mask=inside, other=0.0)
        change = tl.dot(high, b_high, change)
        change = tl.dot(rest, b_high, change)
        change = tl.dot(high, b_rest, change)
    at = y + rows.to(tl.int64)[:, None] * outputs + columns[None, :]
    inside = (rows < count)[:, None] & (columns < outputs)[None, :]
    old = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (old + change).to(tl.bfloat16), mask=inside)

"""Reads a tile of logits on a GPU once, with Triton; torch's own operations read and write it seven times.

Same running maximum and sums as `kernels`: exponentials float32, sums over tiles float64.

Shapes: n positions of a chunk, v rows of a tile, K tokens per position.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
"""Logits of a row that are read at once."""
WARPS = 8


def fold(
    z: Tensor,
    start: int,
    tokens: Tensor,
    chosen: Tensor,
    m: Tensor,
    s: Tensor,
    more: tuple[Tensor, Tensor],
    full: bool,
) -> None:
    """Add a tile to the running numbers, in place; the tile is not changed.

    Args:
        z: [n, v] float32, contiguous; its first row of the vocabulary is `start`.
        tokens: [K, n] int64, contiguous; chosen: [K, n] float32, set if the token is in this tile.
        m: [n] float32, the maximum; s: [n] float64, sum exp(z - m).
        more: argmax [n] int64 and slope [n] float64, sum exp(z - m) (z - m); only changed with `full`.
        full: also update `more`.
    """
    count, width = z.shape
    argmax, slope = more
    arguments = (z, z.stride(0), width, start, tokens, chosen, count, m, s, argmax, slope)
    with torch.cuda.device(z.device):
        _fold[(count,)](*arguments, FULL=full, K=len(tokens), BLOCK=BLOCK, num_warps=WARPS)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _fold(  # type: ignore[no-untyped-def]  # Triton reads the annotations and accepts only its own
    z,
    stride,
    width,
    start,
    tokens,
    chosen,
    count,
    m,
    s,
    argmax,
    slope,
    FULL: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits = z + row * stride
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    place = tl.zeros((BLOCK,), tl.int32)
    for at in range(0, width, BLOCK):
        x = tl.load(logits + at + lane, mask=at + lane < width, other=float("-inf"))
        if FULL:
            place = tl.where(x > top, at + lane, place)
        top = tl.maximum(top, x)
    here = tl.max(top, 0)
    before = tl.load(m + row)
    high = tl.maximum(before, here)
    total = tl.zeros((BLOCK,), tl.float32)
    leaning = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, width, BLOCK):  # the second read comes from the cache
        x = tl.load(logits + at + lane, mask=at + lane < width, other=float("-inf"))
        # minus infinity times a weight of zero would be NaN; NaN stays
        below = tl.where(x - high < -1e4, -1e4, x - high)
        e = tl.exp(below)
        total += e
        if FULL:
            leaning += e * below
    # on the first tile `before` is minus infinity and every sum is zero: any finite drop works
    drop = tl.maximum((before - high).to(tl.float64), -1e4)
    shift = tl.exp(drop)
    old = tl.load(s + row)
    tl.store(s + row, old * shift + tl.sum(total.to(tl.float64), 0))
    tl.store(m + row, high)
    if FULL:
        moved = (tl.load(slope + row) + old * drop) * shift
        tl.store(slope + row, moved + tl.sum(leaning.to(tl.float64), 0))
        first = tl.min(tl.where(top == here, place, width), 0)
        tl.store(argmax + row, start + first.to(tl.int64), mask=here > before)
    for k in tl.static_range(K):
        local = tl.load(tokens + k * count + row) - start
        inside = (local >= 0) & (local < width)
        value = tl.load(logits + local, mask=inside, other=0.0)
        tl.store(chosen + k * count + row, value, mask=inside)

"""Losses from hidden states, tile by tile: a running maximum and sum over the vocabulary, never [tokens x vocabulary].

The running maximum and sum are those of online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867). Logits and
exponentials are float32, sums over tiles float64.

Shapes: N positions, D width, V vocabulary, n positions of a chunk, v rows of a tile, K targets per position.
Symbols: z logits, m running maximum, s running sum of exp(z - m), lse = m + log s.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import failures, products
from .heads import Head, LinearHead

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picked:
    """Result of one pass over the head for K given tokens at N positions.

    Attributes:
        nll: [K, N] float64, -log p(token), nats; infinite for a token outside the compared rows.
        top: [K, N] bool, no token has a larger logit (a tie with the largest counts as top).
        lse: [N] float64, log sum exp of the logits.
    """

    nll: Tensor
    top: Tensor
    lse: Tensor


@dataclass(frozen=True)
class Distribution:
    """Result of one pass over the head about the model's own distribution at N positions.

    Attributes:
        nll: [N] float64, -log p(true token), nats.
        argmax: [N] int64, the top token; the first one if several tie.
        top_nll: [N] float64, -log p(top token), nats.
        entropy: [N] float64, nats.
        mean_row: [N, D] float32, the expectation of the head's rows under the distribution, or None; see
            `expected_logit`.
        mean_bias: [N] float32, to be added to mean_row . h to get the expectation of z / scale at h: the expectation of
            the head's bias, plus a correction for the rounding of mean_row.
    """

    nll: Tensor
    argmax: Tensor
    top_nll: Tensor
    entropy: Tensor
    mean_row: Tensor | None
    mean_bias: Tensor | None


def pick(head: Head, hidden: Tensor, tokens: Tensor, rows: int) -> Picked:
    """-log p of given tokens, and whether they are the top token.

    Args:
        hidden: [N, D] decoder states (or what the head reads).
        tokens: [K, N] int64 token ids.
        rows: the softmax is over the vocabulary's first `rows` tokens.
    """
    parts = [_pick_chunk(head, h, t, rows) for h, t in _chunks(head, hidden, tokens)]
    return Picked(
        torch.cat([p.nll for p in parts], 1), torch.cat([p.top for p in parts], 1), torch.cat([p.lse for p in parts])
    )


def _pick_chunk(head: Head, hidden: Tensor, tokens: Tensor, rows: int) -> Picked:
    running: _Reading | None = None
    for start, z in head.tiles(hidden, rows):
        running = running or _Reading(z, tokens, _fold_on(z.device))
        running.read(z, start)
    assert running is not None
    # Compute m - chosen first: it is exactly zero for the top token, as in `describe`.
    nll = running.s.log() + (running.m.double() - running.chosen.double())
    return Picked(nll, running.chosen >= running.m, running.lse())


def describe(head: Head, hidden: Tensor, tokens: Tensor, rows: int, *, with_mean_row: bool) -> Distribution:
    """The true token's loss, the top token, the entropy, and on request the expected row of the head.

    Args:
        hidden: [N, D] decoder states.
        tokens: [N] int64, the true tokens.
        rows: the softmax is over the vocabulary's first `rows` tokens.
        with_mean_row: also compute `mean_row`, for a linear head without soft-capping (costs a second product with the
            head).
    """
    weights = head if with_mean_row and isinstance(head, LinearHead) and head.softcap is None else None
    parts = [_describe_chunk(head, h, t[0], rows, weights) for h, t in _chunks(head, hidden, tokens[None])]

    def joined(name: str) -> Any:
        return torch.cat([getattr(part, name) for part in parts])

    return Distribution(
        nll=joined("nll"),
        argmax=joined("argmax"),
        top_nll=joined("top_nll"),
        entropy=joined("entropy"),
        mean_row=joined("mean_row") if weights else None,
        mean_bias=joined("mean_bias") if weights else None,
    )


def _describe_chunk(head: Head, hidden: Tensor, tokens: Tensor, rows: int, weights: LinearHead | None) -> Distribution:
    running: _Reading | None = None
    row = bias = torch.empty(0)
    for start, z in head.tiles(hidden, rows):
        if running is None:
            running = _Reading(z, tokens[None], _fold_on(z.device))
            row = torch.zeros(hidden.shape if weights else (0, 0), device=z.device)
        before = running.m
        e = running.read_whole(z, start)
        if weights is not None:
            shift = (before - running.m).double().clamp_(min=-1e4).exp().float()
            row = _plus_product(row.mul_(shift[:, None]), e, weights.weight[start : start + z.shape[1]])
    assert running is not None
    s = running.s
    if weights is not None:
        # At the base model's own states the expectation is known, and so is the error of mean_row there. Correcting
        # for it leaves an error only as large as the difference of the tuned model's states.
        row = row.div_(s.float()[:, None])
        known = running.m.double() + running.slope / s
        bias = (known / weights.scale - _dot(hidden.to(row.device), row)).float()
    return Distribution(
        nll=s.log() + (running.m.double() - running.chosen[0].double()),
        argmax=running.argmax,
        top_nll=s.log(),
        entropy=s.log() - running.slope / s,
        mean_row=row if weights else None,
        mean_bias=bias if weights else None,
    )


def _plus_product(row: Tensor, e: Tensor, weight: Tensor) -> Tensor:
    """row + e W, [n, D] float32, for e [n, v] float32 and W [v, D] of any dtype.

    With bfloat16 weights on a GPU, e is split exactly into a sum of three bfloat16 numbers: 3 x 8 bits of significand.
    """
    if weight.dtype != torch.bfloat16 or not products.widens(weight):
        return torch.addmm(row, e, weight.float())
    for _ in range(3):
        part = e.bfloat16()
        row += torch.mm(part, weight, out_dtype=torch.float32)
        e = e - part
    return row


def expected_logit(head: LinearHead, hidden: Tensor, mean_row: Tensor, mean_bias: Tensor) -> Tensor:
    """[N] float64: the base distribution's expectation of this model's logits, without a pass over the head.

    If base and tuned model share the head, z_v = scale (w_v . h + b_v), so
    sum_v p_base(v) z_v = scale ((sum_v p_base(v) w_v) . h + sum_v p_base(v) b_v): the base model's expected row works
    for every tuned model. The soft losses then cost one dot product per position, and are exact.

    Args:
        hidden: [N, D] the tuned model's states.
        mean_row: [N, D]; mean_bias: [N]; the base model's, from `describe`.
    """
    return head.scale * (_dot(hidden.to(mean_row.device), mean_row) + mean_bias.double())


def _dot(hidden: Tensor, row: Tensor) -> Tensor:
    """[N] float64: h . row at each position."""
    return (hidden.float() * row).sum(1, dtype=torch.float64)


def divergence(base: Head, tuned: Head, base_hidden: Tensor, hidden: Tensor, rows: int) -> Tensor:
    """[N] float64: KL(base || tuned) in nats, from both models' states, tile by tile.

    KL = lse_tuned - lse_base - sum_v p_base(v) (z_tuned(v) - z_base(v)): this sums small differences of logits instead
    of subtracting two large cross-entropies.
    """
    size = min(base.chunk(), tuned.chunk())
    parts = []
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        parts.append(_divergence_chunk(base, tuned, base_hidden[part], hidden[part], rows))
    return torch.cat(parts)


def _divergence_chunk(base: Head, tuned: Head, base_hidden: Tensor, hidden: Tensor, rows: int) -> Tensor:
    b: _Running | None = None
    t: _Running | None = None
    for z_base, z in _aligned(base.tiles(base_hidden, rows), tuned.tiles(hidden, rows), rows):
        z = z.to(z_base.device)
        if b is None or t is None:
            b, t = _Running(z_base), _Running(z)
            drift = b.s.clone()
        delta = z - z_base
        t.add(z)
        shift, _ = b.raise_to(z_base)
        e = z_base.exp_()
        b.s = b.s * shift + e.sum(1)
        drift = drift * shift + delta.mul_(e).nan_to_num_(nan=0.0).sum(1)
    assert b is not None
    assert t is not None
    return t.lse() - b.lse() - drift / b.s


def _aligned(
    one: Iterator[tuple[int, Tensor]], other: Iterator[tuple[int, Tensor]], rows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Two heads' tiles cut to the same columns; heads of different kinds cut the vocabulary differently."""
    start, tile = next(one)
    start_other, tile_other = next(other)
    at = 0
    while at < rows:
        stop = min(start + tile.shape[1], start_other + tile_other.shape[1])
        yield tile[:, at - start : stop - start], tile_other[:, at - start_other : stop - start_other]
        at = stop
        if at < rows and at == start + tile.shape[1]:
            start, tile = next(one)
        if at < rows and at == start_other + tile_other.shape[1]:
            start_other, tile_other = next(other)


class _Running:
    """m and s of online softmax over the tiles of n positions."""

    def __init__(self, z: Tensor) -> None:
        self.m = torch.full((len(z),), -torch.inf, device=z.device)
        self.s = torch.zeros(len(z), dtype=torch.float64, device=z.device)

    def raise_to(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Raise m to the tile's maximum and subtract it from the tile in place.

        Returns:
            exp(m_old - m_new) and m_old - m_new, which move sums relative to the old maximum; float64 [n].
        """
        higher = torch.maximum(self.m, z.amax(1))
        # On the first tile m_old is minus infinity and every sum is zero, so any finite drop works.
        drop = (self.m - higher).double().clamp_(min=-1e4)
        self.m = higher
        z.sub_(higher[:, None])
        return drop.exp(), drop

    def add(self, z: Tensor) -> None:
        """Add a tile; it is overwritten."""
        shift, _ = self.raise_to(z)
        self.s = self.s * shift + z.exp_().sum(1)

    def lse(self) -> Tensor:
        """[n] float64 log sum exp of all tiles."""
        return self.m.double() + self.s.log()


class _Reading(_Running):
    """What is read from the tiles in addition to m and s, for K given tokens per position.

    Attributes:
        chosen: [K, n] float32, their logits.
        argmax: [n] int64, the top token so far; only from `read_whole`.
        slope: [n] float64, sum exp(z - m) (z - m); only from `read_whole`.
    """

    def __init__(self, z: Tensor, tokens: Tensor, fold: Callable[..., None] | None) -> None:
        super().__init__(z)
        self.tokens = tokens.to(z.device).contiguous()
        self.chosen = torch.full(tokens.shape, -torch.inf, device=z.device)
        self.argmax = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        self.slope = self.s.clone()
        self.fold = fold

    def read(self, z: Tensor, start: int) -> None:
        """Read the tile that begins at row `start`, and overwrite it."""
        if self.fold is not None:
            self._folded(z, start, whole=False)
            return
        self.chosen = _gather(z, start, self.tokens, self.chosen)
        self.add(z)

    def read_whole(self, z: Tensor, start: int) -> Tensor:
        """Like `read`, but also updates the top token and the slope.

        Returns:
            [n, v] exp(z - m).
        """
        if self.fold is not None:
            self._folded(z, start, whole=True)
            return z.sub_(self.m[:, None]).exp_()
        self.chosen = _gather(z, start, self.tokens, self.chosen)
        # Search a row's argmax only if this tile raises the maximum, which is rare after the first tiles.
        rises = (z.amax(1) > self.m).nonzero().squeeze(1)
        self.argmax[rises] = start + z[rises].argmax(1)
        shift, drop = self.raise_to(z)
        self.slope = (self.slope + self.s * drop) * shift  # relative to the new maximum
        self.s *= shift
        z.clamp_(min=-1e4)  # minus infinity times a weight of zero would be NaN
        e = z.exp()
        self.s += e.sum(1)
        self.slope += z.mul_(e).sum(1)
        return e

    def _folded(self, z: Tensor, start: int, *, whole: bool) -> None:
        assert self.fold is not None
        self.m = self.m.clone()  # the caller still needs the previous maximum
        self.fold(z, start, self.tokens, self.chosen, self.m, self.s, (self.argmax, self.slope), whole)


@functools.cache
def _fold_on(device: torch.device) -> Callable[..., None] | None:
    """The Triton kernel that reads a tile once, if it compiles and agrees with torch; otherwise None."""
    if device.type != "cuda":
        return None
    z = torch.linspace(-9.0, 9.0, 2 * 3001, device=device).sin_().mul_(9.0).view(2, 3001)
    tokens = torch.tensor([[7, 2999]], device=device)
    try:
        from .tile_kernel import fold

        usual, other = _Reading(z, tokens, None), _Reading(z, tokens, fold)
        usual.read_whole(z.clone(), 0)
        other.read_whole(z.clone(), 0)
    except Exception as error:  # Triton's errors have no common class; the kernel is optional
        log.info("using torch's own operations to read logits, which is slower: %s", failures.first_line(error))
        return None
    same = (usual.argmax == other.argmax).all() & (usual.chosen == other.chosen).all() & (usual.m == other.m).all()
    for one, two in ((usual.s, other.s), (usual.slope, other.slope)):
        same = same & ((one - two).abs() <= 1e-5 * one.abs()).all()
    if not bool(same):
        log.warning("the Triton kernel and torch disagree on %s; not using the kernel", device)
        return None
    return fold


def _gather(z: Tensor, start: int, tokens: Tensor, chosen: Tensor) -> Tensor:
    """`chosen` [K, n] with the logits of those tokens that are in this tile."""
    local = tokens - start
    inside = (local >= 0) & (local < z.shape[1])
    found = z.gather(1, local.clamp(0, z.shape[1] - 1).T).T
    return torch.where(inside, found, chosen)


def _chunks(head: Head, hidden: Tensor, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """hidden [N, D] and tokens [K, N] cut into the head's chunks."""
    size = head.chunk()
    return [(hidden[i : i + size], tokens[:, i : i + size]) for i in range(0, len(hidden), size)]

"""From a decoder's hidden states to logits, tile by tile: the three kinds of head, and how the right one is recognised.

A head is recognised from the model's output embedding and configuration, and then *verified*: on a few tokens its
logits must equal those of the model's own forward. A model with something unknown between decoder and logits is
therefore measured slowly, but not wrongly.

Shapes: N positions, D width, V vocabulary, n positions of a chunk, v rows of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..models import peft_internals, products, sharding

TILE_ROWS = 2048
CHUNK_POSITIONS = 512
"""A tile of 512 x 2,048 float32 logits (4 MB) stays in a processor's cache; larger ones were not faster on a CPU."""
CUDA_TILE_ROWS = 8192
CUDA_CHUNK_POSITIONS = 2048
"""2,048 x 8,192 float32 logits (64 MB) keep a GPU busy, and the head's weights are read only a few times."""
CALL_LOGITS = 8 * 2**20
"""Logits at once (32 MB in float32) if a head can only be called as a whole."""
CUDA_CALL_LOGITS = 64 * 2**20


class Head(Protocol):
    """What the kernels need of a head. Each tile is valid until the next one; its reader may overwrite it."""

    @property
    def vocabulary(self) -> int:
        """Number of rows, V."""
        ...

    def chunk(self) -> int:
        """How many positions to pass to `tiles` at once."""
        ...

    def tiles(self, hidden: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
        """(first row, [n, v] float32 logits) of the vocabulary's first `rows` rows, for hidden [n, D]."""
        ...


@dataclass(frozen=True)
class LinearHead:
    """logits = softcap * tanh(scale * (hidden W^T + bias) / softcap); without softcap, the tanh is left out.

    Gemma 2: softcap = final_logit_softcapping (arXiv:2408.00118, section 2). Cohere: scale = logit_scale. Granite:
    scale = 1 / logits_scaling. With bfloat16 weights, tiles are computed and accumulated in float32.

    Attributes:
        weight: [V, D], shared with the model.
        bias: [V] or None.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    @property
    def vocabulary(self) -> int:
        """Number of rows of the head."""
        return self.weight.shape[0]

    def chunk(self) -> int:
        """How many positions at once."""
        return CUDA_CHUNK_POSITIONS if self.weight.is_cuda else CHUNK_POSITIONS

    def tiles(self, hidden: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
        """Tiles of float32 logits in one reused buffer."""
        weight = self.weight
        height = CUDA_TILE_ROWS if weight.is_cuda else TILE_ROWS
        product = self._wide if hidden.dtype == weight.dtype and products.widens(weight) else self._float32
        states = hidden.to(weight.device)
        if product == self._float32:
            states = states.float() * self.scale
        buffer = torch.empty(len(hidden) * min(height, rows), dtype=torch.float32, device=weight.device)
        for start in range(0, rows, height):
            stop = min(start + height, rows)
            tile = buffer[: len(hidden) * (stop - start)].view(len(hidden), stop - start)
            product(states, slice(start, stop), tile)
            if self.softcap is not None:
                tile.div_(self.softcap).tanh_().mul_(self.softcap)
            yield start, tile

    def _float32(self, scaled: Tensor, part: slice, tile: Tensor) -> None:
        weight = self.weight[part].float()
        if self.bias is None:
            torch.mm(scaled, weight.T, out=tile)
        else:
            torch.addmm(self.bias[part].float() * self.scale, scaled, weight.T, out=tile)

    def _wide(self, states: Tensor, part: slice, tile: Tensor) -> None:
        torch.mm(states, self.weight[part].T, out_dtype=torch.float32, out=tile)
        if self.bias is not None:
            tile += self.bias[part]
        if self.scale != 1.0:
            tile *= self.scale


@dataclass(frozen=True)
class CalledHead:
    """A head that is not a plain linear layer (LoRA on it, quantised, offloaded): called on few positions."""

    module: Callable[[Tensor], Tensor]
    vocabulary: int
    scale: float
    softcap: float | None
    logits: int = CALL_LOGITS
    """Maximum number of logits at once."""

    def chunk(self) -> int:
        """How many positions at once: as many as `logits` allow."""
        return max(1, self.logits // self.vocabulary)

    def tiles(self, hidden: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
        """One tile with all rows."""
        tile = self.module(hidden)[:, :rows].float() * self.scale
        yield 0, tile if self.softcap is None else tile.div_(self.softcap).tanh_().mul_(self.softcap)


@dataclass(frozen=True)
class LogitsHead:
    """No head at all: `hidden` is the logits from the model's own forward."""

    vocabulary: int

    def chunk(self) -> int:
        """How many positions at once."""
        return CHUNK_POSITIONS

    def tiles(self, hidden: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
        """Tiles cut from the logits."""
        height = CUDA_TILE_ROWS if hidden.is_cuda else TILE_ROWS
        for start in range(0, rows, height):
            yield start, hidden[:, start : min(start + height, rows)].float().clone()


def candidates(model: Any) -> Iterator[Head]:
    """Heads that fit the model's output embedding and configuration, likeliest first."""
    module = model.get_output_embeddings()
    if module is None:
        return
    module = peft_internals.acting(module)
    config = model.config.get_text_config()
    on_gpu = any(parameter.is_cuda for parameter in module.parameters())
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    softcap = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
    for scale in _scales(config):
        if sharding.class_of(module) is nn.Linear and module.weight.is_floating_point() and not module.weight.is_meta:
            yield LinearHead(sharding.whole(module.weight.detach()), _detached(module.bias), scale, softcap)
        elif not any(sharding.is_part(parameter) for parameter in module.parameters()):
            at_once = CUDA_CALL_LOGITS if on_gpu else CALL_LOGITS
            yield CalledHead(module, _rows(module, config), scale, softcap, at_once)


def _scales(config: Any) -> list[float]:
    """Factors on the logits. The same field multiplies in some architectures and divides in others, so try both."""
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
        if (value := getattr(config, name, None)) is not None:
            return [float(value), 1 / float(value), 1.0]
    if (value := getattr(config, "logits_scaling", None)) is not None:
        return [1 / float(value), float(value), 1.0]
    return [1.0]


def _rows(module: nn.Module, config: Any) -> int:
    rows = getattr(module, "out_features", None)
    if rows is None and (weight := getattr(module, "weight", None)) is not None and weight.dim() == 2:
        rows = weight.shape[0]
    return int(config.vocab_size if rows is None else rows)


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else sharding.whole(bias.detach())


def verified(head: Head, hidden: Tensor, logits: Tensor) -> bool:
    """Whether the head gives the model's own logits, up to rounding in the model's dtype.

    Args:
        hidden: [n, D] the decoder's output on a few tokens.
        logits: [n, V] the model's own logits there.
    """
    if head.vocabulary != logits.shape[-1]:
        return False
    tolerance = 1e-4 if logits.dtype == torch.float32 and hidden.dtype == torch.float32 else 4e-2
    bound = tolerance * float(logits.float().abs().max()) + 1e-6
    for start, tile in head.tiles(hidden, head.vocabulary):
        expected = logits[:, start : start + tile.shape[1]].float().to(tile.device)
        if not bool(((tile - expected).abs() <= bound).all()):
            return False
    return True

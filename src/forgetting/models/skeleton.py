"""A model without values: layers, shapes and dtypes from its configuration, to count the memory that it would take.

Its tensors are on torch's "meta" device: they have shapes and dtypes but no values, and take no memory. No weights are
read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config.schema import ModelConfig
from . import failures, loading, quantised, transformers_internals, weights
from .sources import Source

SCALES = 256
"""Number of 4-bit scales that share a scale of their own: bitsandbytes' double quantisation."""


@dataclass(frozen=True)
class Skeleton:
    """A base model without values.

    Attributes:
        model: the model; do not change it.
        bytes: bytes of its weights, with quantised ones packed.
        largest: bytes of the largest weight, unpacked.
        mapped: bytes of files that are also mapped on a CPU, since weights converted or quantised on loading are read
            from them.
        stays: whether files stay mapped while the model exists, because other weights are used directly from a file.
    """

    model: Any
    bytes: int
    largest: int
    mapped: int = 0
    stays: bool = False

    def copied(self) -> Any:
        """A copy of the model, for one method to change."""
        return copy.deepcopy(self.model)


@contextmanager
def acting() -> Iterator[None]:
    """Inside, new tensors have no values either, and the random states are unchanged."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield


def skeleton(config: ModelConfig, source: Source) -> Skeleton:
    """A model as it is trained: in its dtype, with linear layers quantised if requested.

    Args:
        config: what would be loaded.
        source: where it is.

    Raises:
        UsageError: its configuration cannot be read, or no model can be built from it.
    """
    asked = copy.deepcopy(loading.architecture(config, source))
    if "flash" in (getattr(asked, "_attn_implementation", None) or ""):
        asked._attn_implementation = None
    files = {} if source.local is None else weights.of_folder(source.local)
    stored = quantised.method_of(asked)
    if stored is not None:
        vars(asked).pop("quantization_config", None)
    dtype = loading.stored_dtype(asked, files) if config.dtype == "auto" else getattr(torch, config.dtype)
    name = loading.called(config)
    with failures.explained(name, "cannot be built"), failures.quiet(), acting():
        model = transformers_internals.loader_of(asked).from_config(
            asked, dtype=dtype, trust_remote_code=config.trust_remote_code
        )
        model.requires_grad_(stored is None and config.bits is None)
        bits = config.bits or quantised.bits_of(loading.architecture(config, source)) or (4 if stored else None)
        if bits is not None:
            _pack(model, dtype)
        largest = max((p.numel() * p.itemsize for p in model.parameters()), default=0)
        size = sum(tensor.size for tensor in files.values())
        if stored is not None:
            return Skeleton(model, size or _weight_bytes(model, bits), largest)
        kept = loading.stored_dtype(asked, files)
        alike = sum(p.numel() * p.itemsize for p in _unpacked(model) if p.dtype == kept)
        return Skeleton(model, _weight_bytes(model, bits), largest, max(size - alike, 0), alike > 0)


class PackedLinear(nn.Linear):
    """Stand-in for a layer that bitsandbytes quantises: its weight is unpacked in each pass and not kept.

    `weight` has the dtype that products are computed in, and its own shape.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Like bitsandbytes: computes in the weight's dtype, returns the input's."""
        made: Tensor = _Unpacked.apply(x.to(self.weight.dtype), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return made.to(x.dtype)


class _Unpacked(torch.autograd.Function):
    """x W^T + b with a W that exists only for this product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + b, for x [..., inputs] and weight [outputs, inputs]."""
        ctx.weight = weight
        return nn.functional.linear(x, torch.empty_like(weight), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *outward: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of x."""
        return outward[0] @ torch.empty_like(ctx.weight), None, None


def _pack(model: Any, dtype: torch.dtype) -> None:
    """Replace linear layers, except the head, with stand-ins; the rest is in float32, and everything is frozen.

    This is what `quantised.prepared` does to a model.
    """
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            outputs, inputs = module.weight.shape if isinstance(module, nn.Linear) else module.weight.T.shape
            packed = PackedLinear(inputs, outputs, bias=module.bias is not None, dtype=dtype)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, packed.requires_grad_(False))
    for parameter in _unpacked(model):
        parameter.data = parameter.data.float()
    model.requires_grad_(False)


def _packed(model: nn.Module) -> set[int]:
    return {id(module.weight) for module in model.modules() if isinstance(module, PackedLinear)}


def _unpacked(model: nn.Module) -> list[nn.Parameter]:
    packed = _packed(model)
    return [parameter for parameter in model.parameters() if id(parameter) not in packed]


def _weight_bytes(model: nn.Module, bits: int | None) -> int:
    """Bytes of a model's parameters and buffers; for packed layers, of values and scales."""
    packed = _packed(model)
    total = sum(buffer.numel() * buffer.itemsize for buffer in model.buffers())
    for parameter in model.parameters():
        count = parameter.numel()
        if id(parameter) not in packed:
            total += count * parameter.itemsize
        elif bits == 8:
            total += count + 4 * len(parameter)
        else:
            blocks = -(-count // quantised.BLOCK)
            total += count // 2 + blocks + 4 * -(-blocks // SCALES)
    return total

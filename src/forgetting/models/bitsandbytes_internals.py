"""Undocumented parts of bitsandbytes that we use, collected in one place because an upgrade may break them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .private_names import PrivateName

PACKS = PrivateName(
    # on each Linear4bit: whether it packs its weights for this CPU (AVX512-BF16) in a pass without gradients. Packing
    # rounds the scales to bfloat16 permanently, so the model that trains afterwards is a different one.
    "bitsandbytes",
    "object:support_avx512bf16_for_cpu",
    "measuring a model in 4 bits on a CPU would change it",
    "0.49.0 to 0.50.2",
)

THRESHOLD = PrivateName(
    # on the state of each Linear8bitLt: features in which any token of the batch exceeds it are multiplied in 16 bits
    # (arXiv:2208.07339, section 3.2), so a token's rounding depends on the other tokens; 0 turns this off
    "bitsandbytes",
    "object:threshold",
    "a model in 8 bits would seem to look at later tokens",
    "0.49.0 to 0.50.2",
)


def keep_layout(model: nn.Module) -> None:
    """Stop a model's 4-bit layers from packing their weights for the CPU."""
    for module in _packing(model):
        setattr(module, PACKS.name, False)


@contextmanager
def layout_kept(model: nn.Module) -> Iterator[None]:
    """Inside this block, stop a model's 4-bit layers from packing their weights for the CPU."""
    changed = _packing(model)
    for module in changed:
        setattr(module, PACKS.name, False)
    try:
        yield
    finally:
        for module in changed:
            setattr(module, PACKS.name, True)


def _packing(model: nn.Module) -> list[Any]:
    """Layers that would pack their weights; none if bitsandbytes has not been imported."""
    library = sys.modules.get("bitsandbytes")
    if library is None:
        return []
    layers = [module for module in model.modules() if isinstance(module, library.nn.Linear4bit)]
    return [layer for layer in layers if PACKS.of(layer)]


@contextmanager
def rounded_by_token(model: nn.Module) -> Iterator[None]:
    """Inside this block, layers in 8 bits round each token independently of the others."""
    library = sys.modules.get("bitsandbytes")
    layers = [] if library is None else [m for m in model.modules() if isinstance(m, library.nn.Linear8bitLt)]
    before = [THRESHOLD.of(layer.state) for layer in layers]
    for layer in layers:
        setattr(layer.state, THRESHOLD.name, 0.0)
    try:
        yield
    finally:
        for layer, threshold in zip(layers, before, strict=True):
            setattr(layer.state, THRESHOLD.name, threshold)

"""What is used of bitsandbytes that it does not document, in one place: what an upgrade may break."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .private_names import PrivateName

PACKS = PrivateName(
    # on each Linear4bit: whether it packs its weights for this CPU (AVX512-BF16) in a pass without gradients. That
    # rounds their scales to bfloat16, for good: what is trained afterwards is another model.
    "bitsandbytes",
    "object:support_avx512bf16_for_cpu",
    "measuring a model in 4 bits on a CPU would change it",
    "0.49.0 to 0.50.2",
)

THRESHOLD = PrivateName(
    # on the state of each Linear8bitLt: features in which any token of the batch is above it are multiplied in 16 bits
    # (arXiv:2208.07339, section 3.2), so that a token is rounded by what others have there; 0 is for none
    "bitsandbytes",
    "object:threshold",
    "a model in 8 bits would be taken for one that reads ahead",
    "0.49.0 to 0.50.2",
)


def keep_layout(model: nn.Module) -> None:
    """Have a model's 4-bit layers never pack their weights for the CPU."""
    for module in _packing(model):
        setattr(module, PACKS.name, False)


@contextmanager
def layout_kept(model: nn.Module) -> Iterator[None]:
    """The same inside this block."""
    changed = _packing(model)
    for module in changed:
        setattr(module, PACKS.name, False)
    try:
        yield
    finally:
        for module in changed:
            setattr(module, PACKS.name, True)


def _packing(model: nn.Module) -> list[Any]:
    """Layers that would pack their weights. Where nobody has imported bitsandbytes, there are none."""
    library = sys.modules.get("bitsandbytes")
    if library is None:
        return []
    layers = [module for module in model.modules() if isinstance(module, library.nn.Linear4bit)]
    return [layer for layer in layers if PACKS.of(layer)]


@contextmanager
def rounded_by_token(model: nn.Module) -> Iterator[None]:
    """Inside this block, layers in 8 bits round each token by itself, whatever the others are."""
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

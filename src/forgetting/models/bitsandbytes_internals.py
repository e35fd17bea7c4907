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

"""Computes LoRA over bfloat16 weights on a GPU without float32 products and sums of the size of the layer's output.

PEFT keeps A and B in float32. In each layer it then converts x, multiplies in float32, and scales, adds and converts
[N, outputs] float32 numbers, which takes about as long as the base model itself. Here A, B and x A^T are sums of two
bfloat16 matrices each (see `products`), and the last product adds to x W^T in place, with float32 sums and one rounding
to bfloat16, as in PEFT's layer. The adapter's change is exact to about 1e-5 of itself, so a result differs from PEFT's
only where it lies next to a boundary between two bfloat16 numbers.

Shapes: N tokens, r rank.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import failures, peft_internals, products, sharding
from .peft_internals import Lora

log = logging.getLogger(__name__)
TOLERANCE = 2**-10
"""Maximum relative difference from PEFT's layer; it is larger if one result in five is the next bfloat16 number."""


def of_its_dtypes(parts: Lora) -> bool:
    """Whether a layer is bfloat16 with a float32 adapter."""
    kinds = parts.base.weight.dtype, parts.a.weight.dtype, parts.b.weight.dtype
    return kinds == (torch.bfloat16, torch.float32, torch.float32)


def fits(parts: Lora) -> bool:
    """Whether a layer has these dtypes and whole weights, on a device where this is faster and agrees with PEFT."""
    weights = [parts.base.weight, parts.a.weight, parts.b.weight]
    whole = len({weight.device for weight in weights}) == 1 and not any(map(sharding.is_part, weights))
    return of_its_dtypes(parts) and whole and products.widens(weights[0]) and _agrees(weights[0].device)


def factors(parts: Lora) -> tuple[Tensor, Tensor]:
    """[2 r, inputs] and [outputs, 2 r] bfloat16: A and scale * B, as `add` takes them."""
    return products.halves(parts.a.weight, 0), products.halves(parts.b.weight * parts.scale)


def add(y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add scale * (x A^T) B^T to `y` in place, in float32 and with one rounding.

    Args:
        y: [N, outputs] bfloat16, contiguous: x W^T + bias.
        x: [N, inputs] bfloat16.
        a, b: see `factors`.

    Returns:
        [N, r] float32, x A^T.
    """
    low = products.summed(products.wide(x, a.T))
    add_low(y, low, b)
    return low


def add_low(y: Tensor, low: Tensor, b: Tensor) -> None:
    """Add low B^T to `y` in place, for low [N, r] float32 and B's `halves` [outputs, 2 r]."""
    kernel = _kernel(y.device)
    if kernel is not None:
        kernel(y, low, b)
    else:
        y.copy_(torch.addmm(y.float(), low, products.summed(b.float()).T))


@functools.cache
def _kernel(device: torch.device) -> Callable[[Tensor, Tensor, Tensor], None] | None:
    """The Triton kernel, if it compiles; otherwise None."""
    if device.type != "cuda":
        return None
    try:
        from .lora_kernel import add as kernel

        y, low, b = (torch.ones(2, k, device=device) for k in (2, 1, 2))
        kernel(y.bfloat16(), low, b.bfloat16())
    except Exception as error:  # Triton's errors have no common class; the kernel is optional
        log.info("adding LoRA's changes with torch, which is slower: %s", failures.first_line(error))
        return None
    return kernel


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, a PeftModel's layers that fit are computed like this. For passes without gradients in evaluation mode."""
    found = [(layer, peft_internals.lora(layer, evaluating=True)) for _, layer in peft_internals.layers(model)]
    forwards = [(layer, _forward(layer, parts)) for layer, parts in found if parts is not None and fits(parts)]
    try:
        for layer, forward in forwards:
            layer.forward = forward
        yield
    finally:
        for layer, _ in forwards:
            vars(layer).pop("forward", None)


def _forward(layer: Any, parts: Lora) -> Callable[..., Tensor]:
    """Replacement for a layer's forward; A and B must not change while it is in use, the scale may."""
    own = layer.forward
    at_scale = functools.lru_cache(maxsize=1)(lambda _scale: factors(parts))

    def forward(x: Tensor, *more: Any, **options: Any) -> Tensor:
        plain = not more and not options and x.dtype == parts.base.weight.dtype and not torch.is_grad_enabled()
        changed = layer.disable_adapters or layer.merged or layer.active_adapters != [parts.adapter]
        if not plain or changed or layer.training or torch.is_autocast_enabled(x.device.type):
            theirs: Tensor = own(x, *more, **options)
            return theirs
        y: Tensor = parts.base(x)
        add(y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]), *at_scale(parts.scale))
        return y

    return forward


@functools.cache
def _agrees(device: torch.device) -> bool:
    """Whether a small layer gives what PEFT's own gives, at a change as large as the base layer's output."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=8, lora_alpha=24, target_modules=["0"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        (layer,) = inject_adapter_in_model(config, nn.Sequential(nn.Linear(64, 48))).to(device).eval()
        layer.base_layer.bfloat16()
        parts = peft_internals.lora(layer)
        if parts is None:
            return False
        for matrix in (parts.a, parts.b):
            matrix.weight.normal_(std=0.2)
        x = torch.randn(96, 64).to(device, torch.bfloat16)
        try:
            expected, y = layer(x).float(), parts.base(x)
            add(y, x, *factors(parts))
        except RuntimeError as error:  # the device's library may lack a product
            log.info("leaving LoRA layers to PEFT, which is slower: %s", failures.first_line(error))
            return False
        same = bool((y.float() - expected).norm() <= TOLERANCE * expected.norm())
    if not same:
        log.warning("LoRA over bfloat16 on %s differs from PEFT's; using PEFT's layers, which is slower", device)
    return same

"""A LoRA layer in training without products of the size of its output: the scale and the sum join the matrix product.

PEFT computes x W^T, then (x A^T) B^T, then that times the scale, then the sum: two passes over [tokens, outputs]
forwards and one backwards, beside a sum of gradients [tokens, inputs]. Here the scale is a factor of the matrix product
that adds to x W^T in place, and the same backwards. The numbers are PEFT's up to rounding, which is verified, layer by
layer, in value and gradients; a layer for which it is not true, or not known, is left to PEFT.

Shapes: N tokens, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models import peft_internals
from ..models.adapters import is_peft, unwrapped


class _FoldedLora(torch.autograd.Function):
    """x W^T + b + scale * (x A^T) B^T; W and b do not train."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Args: x [..., inputs]; weight [outputs, inputs]; a [r, inputs]; b [outputs, r]."""
        flat = x.reshape(-1, x.shape[-1])
        low = flat @ a.T
        y = nn.functional.linear(flat, weight, bias).addmm_(low, b.T, alpha=scale)
        ctx.save_for_backward(flat, low, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outward: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, A and B."""
        flat, low, weight, a, b = ctx.saved_tensors
        slope = outward[0].reshape(-1, outward[0].shape[-1])
        to_low = (slope @ b).mul_(ctx.scale)
        to_x = (slope @ weight).addmm_(to_low, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        to_a = to_low.T @ flat if ctx.needs_input_grad[3] else None
        to_b = (slope.T @ low).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return to_x, None, None, to_a, to_b, None


def _forward(layer: Any, parts: peft_internals.Lora) -> Any:
    """What a layer's forward is replaced with."""
    own = layer.forward

    def forward(x: Tensor, *more: Any, **options: Any) -> Tensor:
        plain = not more and not options and x.dtype == parts.base.weight.dtype
        if not plain or layer.disable_adapters or layer.merged or torch.is_autocast_enabled(x.device.type):
            theirs: Tensor = own(x, *more, **options)
            return theirs
        base = parts.base
        ours: Tensor = _FoldedLora.apply(x, base.weight, base.bias, parts.a.weight, parts.b.weight, parts.scale)  # type: ignore[no-untyped-call]
        return ours

    return forward


class FoldedLayers:
    """The layers of a model that can be computed so."""

    def __init__(self, model: Any) -> None:
        entry = unwrapped(model)
        layers = [layer for _, layer in peft_internals.layers(entry)] if is_peft(entry) else []
        found = [(layer, peft_internals.lora(layer)) for layer in layers]
        self.forwards = [(layer, _forward(layer, parts)) for layer, parts in found if parts is not None]
        self.forwards = [(layer, forward) for layer, forward in self.forwards if _verified(layer, forward)]

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Within, forward and backward, gradient checkpointing's too, are computed so."""
        try:
            for layer, forward in self.forwards:
                layer.forward = forward
            yield
        finally:
            for layer, _ in self.forwards:
                vars(layer).pop("forward", None)


def _verified(layer: Any, forward: Any) -> bool:
    """Whether value and gradients are PEFT's on a few random inputs, up to the dtype's rounding."""
    parts = peft_internals.lora(layer)
    assert parts is not None
    weight = parts.base.weight
    random = torch.randn(4, weight.shape[1] + weight.shape[0], generator=torch.Generator().manual_seed(0))
    random = random.to(weight.device, weight.dtype)
    x, outward = random[:, : weight.shape[1]].clone().requires_grad_(), random[:, weight.shape[1] :]
    wanted = [x, *(part.weight for part in (parts.a, parts.b) if part.weight.requires_grad)]
    tolerance = 1e-5 if weight.dtype in (torch.float32, torch.float64) else 3e-2
    results = []
    with torch.enable_grad():
        for call in (layer.forward, forward):
            y = call(x)
            results.append([y.detach(), *torch.autograd.grad(y, wanted, outward, allow_unused=True)])
    pairs = zip(*results, strict=True)
    return all(
        theirs is not None
        and ours is not None
        # B is zero at the start, and so is the gradient of A
        and bool((ours - theirs).float().norm() <= tolerance * theirs.float().norm())
        for theirs, ours in pairs
    )

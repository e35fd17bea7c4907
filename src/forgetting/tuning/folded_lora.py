"""Trains LoRA layers with fewer passes over their outputs: the scale and the sum are part of the matrix product.

PEFT computes x W^T, then (x A^T) B^T, then multiplies by the scale, then adds: two passes over [tokens, outputs]
forward and one backward, plus a sum of gradients [tokens, inputs]. Here the scale is a factor of the matrix product
that adds to x W^T in place; backward works the same way. If the rank is large relative to the layer's width, even that
costs more than the layer itself. Then the sum W + scale B A is computed first, and the gradients of A and B are derived
from its gradient, which costs three products of the layer's size at any rank. With a float32 adapter over bfloat16
weights on a GPU, each float32 matrix is a sum of two bfloat16 ones (`split_lora`). The numbers equal PEFT's up to
rounding. This is verified layer by layer, in value and gradients; a layer that fails, or cannot be verified, is left to
PEFT.

Shapes: N tokens, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models import peft_internals, products, split_lora
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
        """Gradients of x, A and B."""
        flat, low, weight, a, b = ctx.saved_tensors
        slope = outward[0].reshape(-1, outward[0].shape[-1])
        to_low = (slope @ b).mul_(ctx.scale)
        to_x = (slope @ weight).addmm_(to_low, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        to_a = to_low.T @ flat if ctx.needs_input_grad[3] else None
        to_b = (slope.T @ low).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return to_x, None, None, to_a, to_b, None


class _MergedLora(torch.autograd.Function):
    """x (W + scale * B A)^T + b; W and b do not train. The sum is recomputed for the backward pass, never stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Args: x [..., inputs]; weight [outputs, inputs]; a [r, inputs]; b [outputs, r]."""
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return nn.functional.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    def backward(ctx: Any, *outward: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B."""
        x, weight, a, b = ctx.saved_tensors
        slope = outward[0].reshape(-1, outward[0].shape[-1])
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (slope @ torch.addmm(weight, b, a, alpha=ctx.scale)).view(x.shape)
        to_weight = (slope.T @ x.reshape(-1, x.shape[-1])).mul_(ctx.scale)
        to_a = b.T @ to_weight if ctx.needs_input_grad[3] else None
        to_b = to_weight @ a.T if ctx.needs_input_grad[4] else None
        return to_x, None, None, to_a, to_b, None


class _SplitLora(torch.autograd.Function):
    """`_FoldedLora` for bfloat16 W and b, and float32 A and B, which are multiplied as sums of bfloat16 parts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Args: x [..., inputs]; weight [outputs, inputs]; a [r, inputs]; b [outputs, r]."""
        flat = x.reshape(-1, x.shape[-1])
        y = nn.functional.linear(flat, weight, bias)
        low = split_lora.add(y, flat, products.halves(a, 0), products.halves(b * scale))
        ctx.save_for_backward(flat, low, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outward: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x [..., inputs] bfloat16, A and B float32."""
        flat, low, weight, a, b = ctx.saved_tensors
        slope = outward[0].reshape(-1, outward[0].shape[-1])
        to_low = products.summed(products.wide(slope, products.halves(b * ctx.scale)))
        to_x = to_a = to_b = None
        if ctx.needs_input_grad[0]:
            split_lora.add_low(to_x := slope @ weight, to_low, products.halves(a.T))
            to_x = to_x.view(ctx.shape)
        if ctx.needs_input_grad[3]:
            to_a = products.summed(products.wide(products.halves(to_low).T, flat), 0)
        if ctx.needs_input_grad[4]:
            to_b = products.summed(products.wide(slope.T, products.halves(low))).mul_(ctx.scale)
        return to_x, None, None, to_a, to_b, None


def merging_pays(tokens: int, outputs: int, inputs: int, rank: int) -> bool:
    """Whether computing W + scale B A first takes fewer multiplications than x W^T and (x A^T) B^T, in both passes.

    It adds N * outputs * inputs for the gradient of W, and 4 * r * outputs * inputs for the sum (twice) and the
    gradients of A and B. Not merging adds 3 * N * r * (outputs + inputs).
    """
    return tokens * outputs * inputs + 4 * rank * outputs * inputs < 3 * tokens * rank * (outputs + inputs)


Way = type[_FoldedLora] | type[_MergedLora] | type[_SplitLora]


def _ways(parts: peft_internals.Lora, *, on_gpu: bool = False) -> tuple[Way, ...]:
    """The implementations that are precise enough: a sum of 16-bit weights would lose a small adapter.

    `on_gpu`: assume a GPU that supports them all, wherever the weights are.
    """
    kind = parts.base.weight.dtype
    if not kind == parts.a.weight.dtype == parts.b.weight.dtype:
        fits = split_lora.of_its_dtypes(parts) if on_gpu else split_lora.fits(parts)
        return (_SplitLora,) if fits else ()
    return (_FoldedLora, _MergedLora) if kind in (torch.float32, torch.float64) else (_FoldedLora,)


def _forward(layer: Any, parts: peft_internals.Lora, ways: tuple[Way, ...]) -> Any:
    """Replacement for a layer's forward: for each batch, the cheaper implementation."""
    own = layer.forward
    outputs, inputs = parts.base.weight.shape

    def forward(x: Tensor, *more: Any, **options: Any) -> Tensor:
        plain = not more and not options and x.dtype == parts.base.weight.dtype
        changed = layer.disable_adapters or layer.merged or layer.active_adapters != [parts.adapter]
        if not plain or changed or torch.is_autocast_enabled(x.device.type):
            theirs: Tensor = own(x, *more, **options)
            return theirs
        base, a, b = parts.base, parts.a.weight, parts.b.weight
        way = ways[-1] if merging_pays(x.shape[:-1].numel(), outputs, inputs, len(a)) else ways[0]
        ours: Tensor = way.apply(x, base.weight, base.bias, a, b, parts.scale)  # type: ignore[no-untyped-call]
        return ours

    return forward


class FoldedLayers:
    """The LoRA layers of a model that are computed here instead of by PEFT."""

    def __init__(self, model: Any, *, verify: bool = True, on_gpu: bool = False) -> None:
        """Find the layers.

        Args:
            model: may be wrapped.
            verify: keep only layers that are verified; not possible for a model without values.
            on_gpu: without `verify`, treat the model as one on a GPU.
        """
        entry = unwrapped(model)
        layers = [layer for _, layer in peft_internals.layers(entry)] if is_peft(entry) else []
        found = [(layer, parts) for layer in layers if (parts := peft_internals.lora(layer)) is not None]
        self.forwards = [
            (layer, _forward(layer, parts, ways))
            for layer, parts in found
            if (ways := _verified(layer, parts) if verify else _ways(parts, on_gpu=on_gpu))
        ]

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Inside, the layers' forward and backward are replaced, also when gradient checkpointing recomputes them."""
        try:
            for layer, forward in self.forwards:
                layer.forward = forward
            yield
        finally:
            for layer, _ in self.forwards:
                vars(layer).pop("forward", None)


def _verified(layer: Any, parts: peft_internals.Lora) -> tuple[Way, ...]:
    """The implementations, if they all equal PEFT in value and gradients on a few random inputs, up to rounding."""
    weight = parts.base.weight
    random = torch.randn(4, weight.shape[1] + weight.shape[0], generator=torch.Generator().manual_seed(0))
    random = random.to(weight.device, weight.dtype)
    x, outward = random[:, : weight.shape[1]].clone().requires_grad_(), random[:, weight.shape[1] :]
    wanted = [x, *(part.weight for part in (parts.a, parts.b) if part.weight.requires_grad)]
    tolerance = 1e-5 if weight.dtype in (torch.float32, torch.float64) else 3e-2
    ways = _ways(parts)
    if not ways:
        return ()
    calls = [layer.forward, *(_forward(layer, parts, (way,)) for way in ways)]
    with torch.enable_grad():
        made = [call(x) for call in calls]
        theirs, *ours = ([y.detach(), *torch.autograd.grad(y, wanted, outward, allow_unused=True)] for y in made)
    same = all(
        right is not None
        and found is not None
        # B is zero at the start, so A's gradient is too
        and bool((found - right).float().norm() <= tolerance * right.float().norm())
        for mine in ours
        for found, right in zip(mine, theirs, strict=True)
    )
    return ways if same else ()

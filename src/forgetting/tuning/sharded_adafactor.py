"""Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) where each process has some rows of every weight.

The update equals that of `transformers.Adafactor` as Trainer sets it up: no first moment, a given learning rate. Means
over the rows of a weight, and the size of its update, are sums over all processes; everything else is local.

Shapes: R rows and C columns of a weight, r of its rows here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.sharding import is_part


@dataclass(frozen=True)
class _Row:
    """One weight in a step.

    Attributes:
        group: its options.
        state: its optimiser state; tensors for this process's rows, except the means over rows.
        weight: this process's part: [r, C] of a matrix; another tensor is cut along its first dimension.
        grad: the gradient of that part, in float32 or wider.
        shape: shape of the whole weight.
    """

    group: dict[str, Any]
    state: dict[str, Any]
    weight: Tensor
    grad: Tensor
    shape: tuple[int, ...]

    @property
    def decay(self) -> float:
        return 1.0 - math.pow(self.state["step"], self.group["decay_rate"])

    @property
    def summed_rows(self) -> bool:
        """Whether a mean over rows needs other processes; it does for matrices, which are cut into rows."""
        return len(self.shape) == 2


class ShardedAdafactor(torch.optim.Optimizer):
    """`transformers.Adafactor` on weights sharded by rows."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        """Take over an Adafactor's parameter groups.

        Raises:
            ValueError: they use an option that is not supported here.
        """
        for group in groups:
            if group["beta1"] is not None or group["relative_step"] or group["scale_parameter"]:
                raise ValueError("supports only Adafactor without beta1, relative_step and scale_parameter")
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of all weights, with two sums over all processes."""
        rows = [self._row(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        parts: list[Tensor] = []
        for row in rows:
            parts += _averaged(row)
        sums = iter(_summed(parts))
        for row in rows:
            _take_over(row, sums)
        squares = _summed([_update(row).square().sum().reshape(1) for row in rows])
        for row, square in zip(rows, squares, strict=True):
            update = _update(row)
            rms = square.sqrt() / math.prod(row.shape) ** 0.5
            update.div_((rms / row.group["clip_threshold"]).clamp_(min=1.0)).mul_(row.group["lr"])
            weight = row.weight.float() if row.weight.dtype in (torch.float16, torch.bfloat16) else row.weight
            if row.group["weight_decay"] != 0:
                weight.add_(weight, alpha=-row.group["weight_decay"] * row.group["lr"])
            weight.add_(-update)
            if weight is not row.weight:
                row.weight.copy_(weight)

    def _row(self, group: dict[str, Any], parameter: Any) -> _Row:
        grad, weight, shape = parameter.grad, parameter, tuple(parameter.shape)
        if is_part(parameter):
            grad, weight = grad.to_local(), weight.to_local()
        grad = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            if len(shape) >= 2:
                state["exp_avg_sq_row"] = grad.new_zeros(grad.shape[:-1])
                state["exp_avg_sq_col"] = grad.new_zeros(grad.shape[:-2] + grad.shape[-1:])
            else:
                state["exp_avg_sq"] = torch.zeros_like(grad)
        state["step"] += 1
        return _Row(group, state, weight, grad, shape)


def _averaged(row: _Row) -> list[Tensor]:
    """Update the local means; for those over rows, return this process's share of the sums: [C], and [1]."""
    square = row.grad**2 + row.group["eps"][0]
    state, fresh = row.state, 1.0 - row.decay
    if len(row.shape) < 2:
        state["exp_avg_sq"].mul_(row.decay).add_(square, alpha=fresh)
        return []
    state["exp_avg_sq_row"].mul_(row.decay).add_(square.mean(dim=-1), alpha=fresh)
    if row.summed_rows:
        return [square.sum(dim=0), state["exp_avg_sq_row"].sum().reshape(1)]
    state["exp_avg_sq_col"].mul_(row.decay).add_(square.mean(dim=-2), alpha=fresh)
    return []


def _take_over(row: _Row, sums: Any) -> None:
    """Update the means over rows from the sums of all processes."""
    if row.summed_rows:
        row.state["exp_avg_sq_col"].mul_(row.decay).add_(next(sums) / row.shape[0], alpha=1.0 - row.decay)
        row.state["row_mean"] = next(sums) / row.shape[0]


def _update(row: _Row) -> Tensor:
    """The update of a weight, before clipping."""
    state = row.state
    if len(row.shape) < 2:
        plain: Tensor = state["exp_avg_sq"].rsqrt().mul_(row.grad)
        return plain
    mean = state["row_mean"] if row.summed_rows else state["exp_avg_sq_row"].mean(dim=-1, keepdim=True)
    by_row = (state["exp_avg_sq_row"] / mean).rsqrt_().unsqueeze(-1)
    by_column = state["exp_avg_sq_col"].unsqueeze(-2).rsqrt()
    return torch.mul(by_row, by_column).mul_(row.grad)


def _summed(parts: list[Tensor]) -> list[Tensor]:
    """The sums of all processes' tensors, in one message."""
    if not parts:
        return []
    flat = torch.cat([part.reshape(-1) for part in parts])
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(flat)
    cut = torch.split(flat, [part.numel() for part in parts])
    return [part.view_as(like) for part, like in zip(cut, parts, strict=True)]

"""L2 to the start: keeps all weights near those of the base model, with the same strength.

Li, Grandvalet and Davoine 2018, *Explicit Inductive Bias for Transfer Learning with Convolutional Networks*,
arXiv:1802.01483.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from ...config.schema import RunConfig
from .base import Mitigation, Situation, Takes, Term

if TYPE_CHECKING:
    from torch import Tensor, nn


class L2sp(Mitigation):
    """loss + weight / 2 * ||W - W_base||^2, summed over the weights that the method changes.

    For LoRA-type adapters W - W_base is the adapter's change, scale * B A, not its factors. So one weight means the
    same for every rank and for full fine-tuning, which needs a copy of the trained weights.
    """

    name: ClassVar[str] = "l2sp"
    references: ClassVar[tuple[str, ...]] = ("li2018l2sp",)

    weight: float = Field(
        0.01, ge=0, description="weight of the squared distance in the loss; a list gives one run each"
    )

    def check_model(self, run: RunConfig, model: nn.Module) -> None:
        """Refuse a method that does not add to weights."""
        from .weights import weight_changes

        weight_changes(model, self.name)

    def takes(self, run: RunConfig, model: nn.Module, base: int) -> Takes:
        """Without an adapter, a copy of the trained weights at the start; see `Mitigation.takes`."""
        return penalty_takes(model, base)

    def term(self, at: Situation) -> Term:
        """See `Mitigation.term`."""
        return WeightPenalty(self.name, self.weight / 2, None)


def penalty_takes(model: nn.Module, base: int) -> Takes:
    """Memory of `WeightPenalty`: without an adapter, a copy of the weights; per weight its change, square, gradients.

    Before that, a copy of the base model is prepared to check that the penalty fits the method.
    """
    from ...models.adapters import is_peft

    held = 0 if is_peft(model) else sum(p.numel() * p.itemsize for p in model.parameters() if p.requires_grad)
    largest = max((p.numel() for p in model.parameters() if p.dim() == 2), default=0)
    return Takes(held=held, before=base, step=4 * largest * 4)


class WeightPenalty(Term):
    """factor * sum of importance * (W - W_start)^2, one weight at a time, so that only one is in memory."""

    def __init__(self, name: str, factor: float, importance: dict[str, Tensor] | None) -> None:
        self.name, self.factor, self.importance = name, factor, importance

    def start(self, model: nn.Module) -> None:
        """See `Term.start`."""
        from .weights import weight_changes

        self.changes = weight_changes(model, self.name)

    def on_step(self, model: nn.Module, step: int) -> None:
        """See `Term.on_step`."""
        import torch

        for change in self.changes:
            square = change.delta().square()
            if self.importance is not None:
                square = square * self.importance[change.name].to(square.device)
            total = self.factor * square.sum()
            if total.requires_grad:  # false if a block is frozen
                torch.autograd.backward(total)

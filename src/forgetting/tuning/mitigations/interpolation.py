"""Interpolates towards the base model after training: a curve from base to tuned model, without further training.

Wortsman et al. 2021, *Robust Fine-Tuning of Zero-Shot Models* (WiSE-FT), arXiv:2109.01903.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator, Field, field_validator

from ...config.schema import RunConfig, with_exponent
from ...errors import UsageError
from .base import Mitigation, Situation, Takes

if TYPE_CHECKING:
    from torch import nn

Alpha = Annotated[float, BeforeValidator(with_exponent), Field(ge=0, le=1)]


class Interpolation(Mitigation):
    """After the last step, the model W_base + alpha (W - W_base) is measured at each alpha.

    Training equals that of the plain run. For LoRA-type adapters alpha multiplies the adapter's scale; for full
    fine-tuning and its parts the weights are interpolated, which needs a copy of the base model's weights at the end.
    """

    name: ClassVar[str] = "interpolation"
    references: ClassVar[tuple[str, ...]] = ("wortsman2021wiseft",)

    alphas: tuple[Alpha, ...] = Field(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        min_length=1,
        strict=False,
        description="values of alpha to measure: 0 is the base model, 1 the trained model",
    )

    @field_validator("alphas")
    @classmethod
    def _each_once(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        twice = next((alpha for alpha in value if value.count(alpha) > 1), None)
        if twice is not None:  # rows are told apart by step and alpha
            raise ValueError(f"got {twice:g} twice; give each alpha once")
        return value

    def check_model(self, run: RunConfig, model: nn.Module) -> None:
        """Refuse a method that does not add to weights, or whose addition is not zero at the start."""
        from .weights import weight_changes

        if not all(change.starts_at_zero for change in weight_changes(model, self.name)):
            raise UsageError(
                f"mitigations.interpolation: does not work with {run.method.label or run.method.name}: its adapters "
                "are not zero at the base model, so scaling them to zero does not lead back to it"
            )

    def takes(self, run: RunConfig, model: nn.Module, base: int) -> Takes:
        """Without an adapter, copies of the base and the tuned weights; see `Mitigation.takes`."""
        from ...models.adapters import is_peft

        return Takes(before=base, after=0 if is_peft(model) else 2 * base)

    def afterwards(self, model: nn.Module, at: Situation) -> Iterator[float]:
        """Each alpha in turn; see `Mitigation.afterwards`."""
        from ...models.adapters import is_peft

        yield from self._scaled(model) if is_peft(model) else self._between(model, at)

    def _scaled(self, model: nn.Module) -> Iterator[float]:
        from .weights import adapter_scalings

        scalings = [(scaling, key, scaling[key]) for scaling, key in adapter_scalings(model, self.name)]
        try:
            for alpha in self.alphas:
                for scaling, key, trained in scalings:
                    scaling[key] = alpha * trained
                yield alpha
        finally:
            for scaling, key, trained in scalings:
                scaling[key] = trained

    def _between(self, model: nn.Module, at: Situation) -> Iterator[float]:
        import torch

        from ...models.loading import load_base

        start = dict(load_base(at.run.model, at.base.source).model.named_parameters())
        pairs = [(p, p.detach().clone(), start[name].detach()) for name, p in model.named_parameters()]
        try:
            for alpha in self.alphas:
                for parameter, tuned, base in pairs:
                    parameter.data.copy_(torch.lerp(base.float(), tuned.float(), alpha))
                yield alpha
        finally:
            for parameter, tuned, _ in pairs:
                parameter.data.copy_(tuned)

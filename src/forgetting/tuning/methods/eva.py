"""EVA: a LoRA whose A starts as the main directions of the activations on the fine-tuning data, through PEFT.

Paischer et al. 2024, *Parameter Efficient Fine-tuning via Explained Variance Adaptation*, arXiv:2410.07170. Ranks move
between layers (at most rho times the requested rank) to where the variance is. Their sum stays the same, so P differs a
little from LoRA's if layers differ in shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ...errors import UsageError
from .base import Context
from .calibration import draw
from .lora import LowRank
from .targets import adapt, refused, shape

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

PASSES_LIMIT = 500
"""Maximum forward passes until the directions are stable; PEFT itself would never stop."""


class Eva(LowRank):
    """A starts as the main directions of a layer's inputs on the training data, B as zero. P = sum r_l (in + out)."""

    name: ClassVar[str] = "eva"
    references: ClassVar[tuple[str, ...]] = ("paischer2024eva",)

    rho: float = Field(2.0, ge=1, le=16, description="a layer's rank is at most rho times `rank`; 1 keeps ranks equal")
    batch_windows: int = Field(16, ge=1, description="training windows per pass; together at least rho * rank tokens")

    @property
    def directions(self) -> int:
        """Directions to find in a layer: the largest rank that it can get."""
        return round(self.rank * self.rho)

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse more directions than a layer has inputs or a batch has tokens."""
        super().check(model, context)
        narrowest = min((shape(module)[0] for module in self.linear(model).values()), default=self.directions)
        if self.directions > narrowest:
            raise UsageError(
                f"methods.eva.rank: rank * rho is {self.directions}, but the narrowest target has {narrowest} inputs"
            )
        self._batches(context)

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Add the adapters and initialise A from the data; see `Method.prepare`."""
        from peft import EvaConfig, initialize_lora_eva_weights

        where = "methods.eva"
        batches = self._batches(context)
        # with rank-stabilised scaling, alpha / sqrt(r_l) is already the right scale of a layer
        config = EvaConfig(rho=self.rho, adjust_scaling_factors=self.scaling == "classic")
        adapted = adapt(model, self.lora_config(model, init_lora_weights="eva", eva_config=config), where)
        passes = 0

        def forward(inner: Any, batch: dict[str, Any]) -> Any:
            nonlocal passes
            passes += 1
            if passes > PASSES_LIMIT:
                raise UsageError(
                    f"{where}: the directions were not stable after {PASSES_LIMIT} passes; use a smaller rank"
                )
            return inner(**batch)

        refused(
            lambda: initialize_lora_eva_weights(
                adapted, dataloader=batches, forward_fn=forward, show_progress_bar=False
            ),
            where,
        )
        # PEFT rebuilds layers whose rank changes, in the base model's dtype; all other adapters are float32
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return adapted

    def _batches(self, context: Context) -> list[dict[str, Any]]:
        """Batches of training windows with at least as many tokens as directions; batches with fewer are left out."""
        import torch

        from ...data.padding import right_padded

        windows = draw(context.train, len(context.train), context.seed)
        length = int(windows.lengths.max())
        batches = []
        for start in range(0, len(windows) - self.batch_windows + 1, self.batch_windows):
            rows = [windows.window(i)[0] for i in range(start, start + self.batch_windows)]
            if sum(map(len, rows)) >= self.directions:
                padded = right_padded(rows, pad=0, width=length)
                batches.append({name: torch.from_numpy(array) for name, array in padded.items()})
        if not batches:
            raise UsageError(
                f"methods.eva.batch_windows: no {self.batch_windows} training windows contain the "
                f"{self.directions} tokens that rank * rho needs"
            )
        return batches

"""Low-rank adaptation of linear layers, through PEFT: LoRA and two relatives that start exactly at the base model.

Hu et al. 2021, *LoRA*, arXiv:2106.09685. Rank-stabilised scaling alpha / sqrt(r): Kalajdzievski 2023,
arXiv:2312.03732; the paper on forgetting laws uses it, so that ranks are comparable at one learning rate.
DoRA: Liu et al. 2024, arXiv:2402.09353. MiCA: Rüdiger & Raschka 2026, arXiv:2604.01694.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from .base import Context
from .targets import Targeted, adapt, shape

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel


class LowRank(Targeted):
    """W + scale * B A with A [r, inputs], B [outputs, r]."""

    rank: int = Field(8, ge=1, description="rank r; a list gives one run each")
    scaling: Literal["rank-stabilized", "classic"] = Field(
        "rank-stabilized",
        description="scale of the adapter: `rank-stabilized` alpha / sqrt(r), or `classic` alpha / r",
    )
    alpha: float = Field(16.0, gt=0, description="alpha in the adapter's scale")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")

    def lora_config(self, model: PreTrainedModel, **more: Any) -> LoraConfig:
        """PEFT's configuration for these options."""
        from peft import LoraConfig, TaskType

        return LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets(model),
            use_rslora=self.scaling == "rank-stabilized",
            **more,
        )

    def notices(self, model: PreTrainedModel) -> list[str]:
        """A notice if the rank exceeds that of a layer's weights, which the product B A cannot exceed."""
        modules = self.linear(model)
        name = min(modules, key=lambda key: min(shape(modules[key])), default=None)
        if name is None or self.rank <= min(shape(modules[name])):
            return []
        inputs, outputs = shape(modules[name])
        return [
            f"methods.{self.name}.rank: {self.rank} is more than {name} can use: it has {inputs} inputs and {outputs} "
            f"outputs, so ranks above {min(inputs, outputs)} add parameters there but nothing more can be learned"
        ]

    def sources(self) -> tuple[str, ...]:
        """References of the method, and of the scale if it is used."""
        return (*self.references, *(["kalajdzievski2023rslora"] if self.scaling == "rank-stabilized" else []))


class Lora(LowRank):
    """LoRA of rank r: W + scale * B A, with B zero at the start, so step 0 is the base model. P = r (in + out)."""

    name: ClassVar[str] = "lora"
    quantised: ClassVar[tuple[int, ...]] = (4, 8)
    references: ClassVar[tuple[str, ...]] = ("hu2021lora",)

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Add the adapters; see `Method.prepare`."""
        return adapt(model, self.lora_config(model), "methods.lora")


class Dora(LowRank):
    """LoRA of the direction of each output's weights, with a separate magnitude per output. P = r (in + out) + out."""

    name: ClassVar[str] = "dora"
    quantised: ClassVar[tuple[int, ...]] = (4,)  # with 8 bits PEFT finds no dtype to compute in
    references: ClassVar[tuple[str, ...]] = ("liu2024dora",)

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Add the adapters; see `Method.prepare`."""
        return adapt(model, self.lora_config(model, use_dora=True), "methods.dora")


class Mica(LowRank):
    """B frozen at the left singular vectors of W's r smallest singular values, A trained from zero. P = r in."""

    name: ClassVar[str] = "mica"
    references: ClassVar[tuple[str, ...]] = ("rudiger2026mica",)

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse targets and ranks that the model does not have."""
        super().check(model, context)
        self.check_rank(self.rank, model)

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Add the adapters; see `Method.prepare`."""
        return adapt(model, self.lora_config(model, init_lora_weights="mica"), "methods.mica")

"""Low-rank adaptation of linear layers, through PEFT: LoRA and two relatives that start at the base model exactly.

Hu et al. 2021, *LoRA*, arXiv:2106.09685. Rank-stabilised scaling alpha / sqrt(r): Kalajdzievski 2023,
arXiv:2312.03732; the paper of the forgetting laws uses it, so that ranks are comparable at one learning rate.
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

    rank: int = Field(8, ge=1, description="r; a list is one run each")
    scaling: Literal["rank-stabilized", "classic"] = Field(
        "rank-stabilized", description="alpha / sqrt(r), or alpha / r"
    )
    alpha: float = Field(16.0, gt=0, description="scale of what the adapter adds")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapter's input")

    def lora_config(self, model: PreTrainedModel, **more: Any) -> LoraConfig:
        """PEFT's configuration of these options."""
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
        """A rank that the weights of a layer do not have: a product B A of it is of their rank all the same."""
        modules = self.linear(model)
        name = min(modules, key=lambda key: min(shape(modules[key])), default=None)
        if name is None or self.rank <= min(shape(modules[name])):
            return []
        inputs, outputs = shape(modules[name])
        return [
            f"methods.{self.name}.rank: {self.rank} is more than {name} can use, with {inputs} inputs and {outputs} "
            f"outputs: ranks above {min(inputs, outputs)} add parameters there and nothing that can be learned"
        ]

    def sources(self) -> tuple[str, ...]:
        """Those of the method, and of the scale where it is used."""
        return (*self.references, *(["kalajdzievski2023rslora"] if self.scaling == "rank-stabilized" else []))


class Lora(LowRank):
    """LoRA of rank r: W + scale * B A, with B zero at the start, so that step 0 is the base model. P = r (in + out)."""

    name: ClassVar[str] = "lora"
    quantised: ClassVar[tuple[int, ...]] = (4, 8)
    references: ClassVar[tuple[str, ...]] = ("hu2021lora",)

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Add the adapters; see `Method.prepare`."""
        return adapt(model, self.lora_config(model), "methods.lora")


class Dora(LowRank):
    """LoRA of the direction of each weight column beside its trained magnitude. P = r (in + out) + out."""

    name: ClassVar[str] = "dora"
    quantised: ClassVar[tuple[int, ...]] = (4,)  # in 8 bits PEFT finds no dtype to compute in
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

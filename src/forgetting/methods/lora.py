"""Low-rank adaptation of linear layers, through PEFT.

Hu et al. 2021, *LoRA*, arXiv:2106.09685. Rank-stabilised scaling alpha / sqrt(r): Kalajdzievski 2023,
arXiv:2312.03732; the paper of the forgetting laws uses it, so that ranks are comparable at one learning rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from ..errors import UsageError
from .base import Context, Method

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Lora(Method):
    """LoRA of rank r: W + scale * B A, with B zero at the start, so that step 0 is the base model."""

    name: ClassVar[str] = "lora"
    references: ClassVar[tuple[str, ...]] = ("hu2021lora", "kalajdzievski2023rslora")

    rank: int = Field(8, ge=1, description="r; a list is one run each")
    target_modules: str | list[str] = Field("all-linear", description="`all-linear`, or a list of module names")
    scaling: Literal["rank-stabilized", "classic"] = Field(
        "rank-stabilized", description="alpha / sqrt(r), or alpha / r"
    )
    alpha: float = Field(16.0, gt=0, description="scale of what the adapter adds")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapter's input")

    @field_validator("target_modules")
    @classmethod
    def _modules(cls, value: str | list[str]) -> str | list[str]:
        if value == "all-linear" or (isinstance(value, list) and value):
            return value
        raise ValueError(f"got {value!r}; give all-linear, or a list of module names such as [q_proj, v_proj]")

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Add the adapters; see `Method.prepare`."""
        from peft import LoraConfig, TaskType, get_peft_model

        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            use_rslora=self.scaling == "rank-stabilized",
        )
        try:
            adapted: PeftModel = get_peft_model(model, config)
        except ValueError as error:
            # PEFT names the target modules that it did not find in the first line
            first = str(error).splitlines()[0]
            raise UsageError(f"methods.lora.target_modules: got {self.target_modules!r}; {first}") from None
        return adapted

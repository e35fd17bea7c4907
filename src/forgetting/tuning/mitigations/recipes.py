"""Changes of the recipe as mitigations: each trains less, or more cautiously, through one option of the recipe.

Every other mitigation must beat these: a run that stops earlier or learns more slowly also forgets less. Biderman et
al. 2024, *LoRA Learns Less and Forgets Less*, arXiv:2405.09673, compare weight decay and dropout with LoRA as
regularisers.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ...config.schema import MethodConfig, RunConfig
from ...errors import UsageError
from ...models.loading import Base
from .base import Mitigation


class LearningRate(Mitigation):
    """Multiplies the learning rate, of the recipe or of the method, by a factor."""

    name: ClassVar[str] = "learning_rate"
    references: ClassVar[tuple[str, ...]] = ("biderman2024lora",)
    sharded: ClassVar[bool] = True

    factor: float = Field(0.5, gt=0, lt=1, description="factor on the learning rate; a list gives one run each")

    def recipe(self, run: RunConfig) -> RunConfig:
        """Multiply; see `Mitigation.recipe`."""
        own = run.method.options.get("learning_rate")
        if own is not None:
            return run.model_copy(update={"method": _with(run.method, learning_rate=own * self.factor)})
        rate = run.training.learning_rate * self.factor
        return run.model_copy(update={"training": run.training.model_copy(update={"learning_rate": rate})})


UNDECAYED = ("bias", "ln_tuning")
"""Methods that train only biases or norms, which transformers does not decay."""


class WeightDecay(Mitigation):
    """Decoupled weight decay: pulls the trained weights to zero, which for LoRA is towards the base model.

    Loshchilov and Hutter 2017, arXiv:1711.05101. Zero is the base model only for adapters whose effect vanishes there.
    It is not for the factors of IA3 and the magnitudes of DoRA, for prompts, or for PiSSA, OLoRA and CorDA, which move
    part of the base model's weights into the adapter. In full fine-tuning it pulls away from the base model; there,
    `l2sp` is the decay towards the start.
    """

    name: ClassVar[str] = "weight_decay"
    references: ClassVar[tuple[str, ...]] = ("loshchilov2019adamw", "biderman2024lora")
    sharded: ClassVar[bool] = True

    value: float = Field(
        0.1, gt=0, description="weight decay instead of training.weight_decay; a list gives one run each"
    )

    def check(self, run: RunConfig, base: Base) -> None:
        """Refuse a decay that the recipe already has, or that nothing would get."""
        if run.method.name in UNDECAYED:
            raise UsageError(
                f"mitigations.weight_decay: does not work with {run.method.name}: transformers decays neither biases "
                "nor norms, so it would change nothing"
            )
        if run.training.weight_decay == self.value:
            raise UsageError(f"mitigations.weight_decay: the recipe already has training.weight_decay {self.value}")

    def recipe(self, run: RunConfig) -> RunConfig:
        """Replace; see `Mitigation.recipe`."""
        return run.model_copy(update={"training": run.training.model_copy(update={"weight_decay": self.value})})


class Dropout(Mitigation):
    """Dropout on the adapter's input, for methods with an option `dropout`."""

    name: ClassVar[str] = "dropout"
    references: ClassVar[tuple[str, ...]] = ("biderman2024lora",)
    sharded: ClassVar[bool] = True

    rate: float = Field(0.1, gt=0, lt=1, description="dropout rate instead of the method's; a list gives one run each")

    def check(self, run: RunConfig, base: Base) -> None:
        """Refuse a method without the option, or one that already has this dropout."""
        given = run.method.options.get("dropout")
        if given is None:
            raise UsageError(
                f"mitigations.dropout: does not work with {run.method.name}, which has no option `dropout`"
            )
        if given == self.rate:
            raise UsageError(f"mitigations.dropout: {run.method.name} already has dropout {given}")

    def recipe(self, run: RunConfig) -> RunConfig:
        """Replace; see `Mitigation.recipe`."""
        return run.model_copy(update={"method": _with(run.method, dropout=self.rate)})


def _with(method: MethodConfig, **options: float) -> MethodConfig:
    return MethodConfig.model_validate({**method.model_dump(mode="json"), **options})

"""The contract of a fine-tuning method: options in, a trainable model out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ...config.schema import VariantOptions
from ...errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from ...data.windows import Windows


@dataclass(frozen=True)
class Context:
    """What a method may know about its run.

    Attributes:
        seed: the run's seed; everything random depends only on it. The global generators are seeded with it, too.
        train: the windows that the run trains on.
        measured: the general text that forgetting is measured on; never calibrate on it.
        tokenizer: the base model's tokenizer.
        length: tokens per window.
    """

    seed: int
    train: Windows
    measured: Windows
    tokenizer: PreTrainedTokenizerFast
    length: int


class Method(VariantOptions, ABC):
    """One way to make a model trainable. Its fields are its options; each is read by `prepare` or `train`.

    Class attributes:
        name: its name in a configuration.
        references: keys of its sources in `reporting.citations`.
        start: what the model is at step 0: the base model `exactly`, within `rounding` of its dtype, or possibly
            something `else`. A run stops if one of the first two does not hold; forgetting is always measured against
            the base model.
        quantised: values of `model.bits` that it works with, because it neither changes nor reads quantised weights.
        sharded: whether it can train a model whose weights are sharded over processes.
    """

    references: ClassVar[tuple[str, ...]] = ()
    start: ClassVar[Literal["exactly", "rounding", "else"]] = "exactly"
    quantised: ClassVar[tuple[int, ...]] = ()
    sharded: ClassVar[bool] = True

    learning_rate: float | None = Field(
        None,
        gt=0,
        lt=10,
        description="learning rate for this method instead of training.learning_rate; a list gives one run each",
    )

    def check_quantised(self, how: str, bits: int | None, fit: Sequence[str]) -> None:
        """Refuse quantised base weights if the method would train or read them.

        Args:
            how: how they are quantised, in words.
            bits: bits by bitsandbytes; None for another quantisation.
            fit: methods that work with them.

        Raises:
            UsageError: names the method, and those that work.
        """
        if not self.quantised or (bits is not None and bits not in self.quantised):
            raise UsageError(
                f"methods.{self.name}: does not work with {how}: it trains the base model's weights or starts from "
                f"them, and those are quantised; use one of {', '.join(fit)}"
            )

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse options that do not fit, before anything runs; changes nothing. Called before `prepare`.

        Args:
            model: the base model.
            context: what is known about the run.

        Raises:
            UsageError: says what came and what this model allows.
        """

    def notices(self, model: PreTrainedModel) -> list[str]:
        """Notices about these options on the base model."""
        return []

    @abstractmethod
    def prepare(self, model: PreTrainedModel, context: Context) -> PreTrainedModel | PeftModel:
        """Make `model` trainable in place.

        Args:
            model: the base model, freshly loaded; changed in place.
            context: what is known about the run.

        Returns:
            The model to train; `requires_grad` marks the parameters that train.

        Raises:
            UsageError: the options do not fit this model.
        """

    def save(self, model: PreTrainedModel | PeftModel, folder: Path) -> None:
        """Write the tuned weights as safetensors: an adapter for the unchanged base model, or a whole model.

        Args:
            model: what `prepare` returned, trained.
            folder: created.
        """
        model.save_pretrained(str(folder))

    def sources(self) -> tuple[str, ...]:
        """Keys of the works that a user of these options should cite."""
        return self.references

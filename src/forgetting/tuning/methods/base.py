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
    """What a method may know of its run.

    Attributes:
        seed: of the run; all that is random depends on it alone. The global generators are seeded with it, too.
        train: the windows that the run trains on.
        measured: the general text that forgetting is measured on: never to be calibrated on.
        tokenizer: of the base model.
        length: tokens a window.
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
        start: what the model is at step 0: the base model `exactly`, within `rounding` of its dtype, or maybe something
            `else`. A run stops if the first two are not true; forgetting is always measured against the base model.
        quantised: the `model.bits` that it works with: it neither changes nor reads the weights that are quantised.
        sharded: whether it trains where the prepared model's weights are shared out over processes.
    """

    references: ClassVar[tuple[str, ...]] = ()
    start: ClassVar[Literal["exactly", "rounding", "else"]] = "exactly"
    quantised: ClassVar[tuple[int, ...]] = ()
    sharded: ClassVar[bool] = True

    learning_rate: float | None = Field(
        None, gt=0, lt=10, description="of this method instead of training.learning_rate; a list is one run each"
    )

    def check_quantised(self, how: str, bits: int | None, fit: Sequence[str]) -> None:
        """Refuse a base model whose weights are quantised, where the method would train or read them.

        Args:
            how: they are quantised, in words.
            bits: by bitsandbytes; None by something else.
            fit: methods that it goes together with.

        Raises:
            UsageError: names the method, and those.
        """
        if not self.quantised or (bits is not None and bits not in self.quantised):
            raise UsageError(
                f"methods.{self.name}: does not go together with {how}: it trains the base model's weights or starts "
                f"from them, and those are quantised; use one of {', '.join(fit)}"
            )

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse, before anything runs, options that do not fit; changes nothing. Called before `prepare`.

        Args:
            model: the base model.
            context: what is known of the run.

        Raises:
            UsageError: what came, what this model allows.
        """

    def notices(self, model: PreTrainedModel) -> list[str]:
        """What a reader of its numbers should know of these options on the base model."""
        return []

    @abstractmethod
    def prepare(self, model: PreTrainedModel, context: Context) -> PreTrainedModel | PeftModel:
        """Make `model` trainable in place.

        Args:
            model: the base model, freshly loaded; changed in place.
            context: what is known of the run.

        Returns:
            The model to train; what trains has `requires_grad`.

        Raises:
            UsageError: the options do not fit this model.
        """

    def save(self, model: PreTrainedModel | PeftModel, folder: Path) -> None:
        """Write the tuned weights as safetensors: an adapter that fits the base model as it was, or a whole model.

        Args:
            model: what `prepare` returned, trained.
            folder: created.
        """
        model.save_pretrained(str(folder))

    def sources(self) -> tuple[str, ...]:
        """Keys of the works that a user of these options should cite."""
        return self.references

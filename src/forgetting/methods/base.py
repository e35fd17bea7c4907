"""The contract of a fine-tuning method: options in, a trainable model out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from ..config import Section

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Method(Section, ABC):
    """One way to make a model trainable. Its fields are its options; each is read by `prepare`.

    Class attributes:
        name: its name in a configuration.
        references: BibTeX keys or arXiv ids of its sources.
    """

    name: ClassVar[str]
    references: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def prepare(self, model: PreTrainedModel) -> PreTrainedModel | PeftModel:
        """Make `model` trainable in place; its outputs must not change until the first update step.

        Args:
            model: the base model, freshly loaded; changed in place.

        Returns:
            The model to train; what trains has `requires_grad`.

        Raises:
            UsageError: the options do not fit this model.
        """

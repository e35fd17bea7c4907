"""The contract of a fine-tuning method: options in, a trainable model out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from ..config import MethodConfig, Section
from ..errors import UsageError

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


def expand(config: MethodConfig, kind: type[Method]) -> list[MethodConfig]:
    """The grid that a configuration means: a list for an option that takes one value is one method each.

    Raises:
        UsageError: an empty list.
    """
    grid = [dict(config.options)]
    for option, value in config.options.items():
        field = kind.model_fields.get(option)
        if field is None or not isinstance(value, list | tuple) or _takes(field.annotation, list(value)):
            continue
        if not value:
            raise UsageError(f"methods.{config.name}.{option}: an empty list; give at least one value")
        if len(set(map(repr, value))) < len(value):
            raise UsageError(f"methods.{config.name}.{option}: a value repeats: {list(value)}")
        grid = [{**options, option: single} for options in grid for single in value]
    return [MethodConfig.model_validate({"name": config.name, **options}) for options in grid]


def _takes(annotation: Any, value: list[Any]) -> bool:
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True

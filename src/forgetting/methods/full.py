"""Full fine-tuning: every parameter trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .base import Context, Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Full(Method):
    """Every parameter of the model trains, in the dtype in which it was loaded."""

    name: ClassVar[str] = "full"

    def prepare(self, model: PreTrainedModel, context: Context) -> PreTrainedModel:
        """Ask for all gradients; see `Method.prepare`."""
        model.requires_grad_(True)
        return model

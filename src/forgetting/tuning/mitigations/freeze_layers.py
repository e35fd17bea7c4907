"""Freezes the bottom layers: those near the input stay as in the base model.

Lee et al. 2019, *What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning*, arXiv:1911.03090.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ...config.schema import RunConfig
from ...errors import UsageError
from .base import Mitigation, Takes

if TYPE_CHECKING:
    from torch import nn


class FreezeLayers(Mitigation):
    """The first `layers` blocks, and everything before them, do not train: neither weights nor adapters.

    A token embedding that is also the output head is frozen with them.
    """

    name: ClassVar[str] = "freeze_layers"
    references: ClassVar[tuple[str, ...]] = ("lee2019elsa",)
    sharded: ClassVar[bool] = True

    layers: int = Field(ge=1, description="number of blocks from the input on; fewer than the model has")

    def check_model(self, run: RunConfig, model: nn.Module) -> None:
        """Refuse if nothing, or everything, would be frozen."""
        self.adapt(model)

    def takes(self, run: RunConfig, model: nn.Module, base: int) -> Takes:
        """A copy of the base model, prepared to check what would freeze; see `Mitigation.takes`."""
        return Takes(before=base)

    def adapt(self, model: nn.Module) -> None:
        """Freeze; see `Mitigation.adapt`."""
        from ...models.adapters import is_prompt_learning

        where = f"mitigations.freeze_layers.layers: got {self.layers}"
        if is_prompt_learning(model):
            raise UsageError("mitigations.freeze_layers: does not work with a prompt, which is not in any layer")
        blocks = {block for name, _ in model.named_parameters() if (block := _block(name)) is not None}
        if self.layers >= len(blocks):
            raise UsageError(f"{where}; the model has {len(blocks)} blocks; freeze fewer")
        embeddings = _embeddings(model)
        frozen = 0
        for name, parameter in model.named_parameters():
            block = _block(name)
            if parameter.requires_grad and (id(parameter) in embeddings or (block is not None and block < self.layers)):
                parameter.requires_grad_(False)
                frozen += 1
        if not frozen:
            raise UsageError(f"{where}; nothing in those blocks trains with this method, so it would change nothing")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UsageError(f"{where}; nothing would be left to train")


def _embeddings(model: Any) -> set[int]:
    """The ids of the parameters before the blocks: of token and learned position embeddings, and of their norms."""
    from torch import nn

    found = {id(p) for p in model.get_input_embeddings().parameters()}
    output = model.get_output_embeddings()
    head = set() if output is None else {id(module) for module in output.modules()}
    for name, module in model.named_modules():
        named = "embed" in name.rpartition(".")[2].lower()  # also a norm such as BLOOM's word_embeddings_layernorm
        adapted = isinstance(getattr(module, "base_layer", None), nn.Embedding)
        if _block(name) is None and id(module) not in head and (named or adapted or isinstance(module, nn.Embedding)):
            found |= {id(p) for inner, p in module.named_parameters() if _block(inner) is None}
    return found


def _block(name: str) -> int | None:
    """The number of a parameter's block: the first number in its dotted name."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)

"""Trains part of the model's own weights: the top layers, the biases, the normalisation layers, or everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from ...errors import UsageError
from .base import Context, Method
from .targets import Layers, adapt, decoder_layers, layer_numbers, text_part

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Full(Method):
    """Every parameter of the model trains, in the dtype it was loaded in."""

    name: ClassVar[str] = "full"

    def prepare(self, model: PreTrainedModel, context: Context) -> PreTrainedModel:
        """Turn on all gradients; see `Method.prepare`."""
        model.requires_grad_(True)
        return model


class TopLayers(Method):
    """The last `count` decoder layers train in full; the rest is frozen. P = their parameters.

    As in Kalajdzievski 2024, arXiv:2401.05605, Appendix B.
    """

    name: ClassVar[str] = "top_layers"

    count: int = Field(1, ge=1, description="number of layers, from the top; a list gives one run each")

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse more layers than the model has."""
        _, there = decoder_layers(model)
        if self.count > there:
            raise UsageError(f"methods.top_layers.count: got {self.count}; the model has {there} decoder layers")

    def prepare(self, model: PreTrainedModel, context: Context) -> PreTrainedModel:
        """Freeze the layers below; see `Method.prepare`."""
        model.requires_grad_(False)
        prefix, there = decoder_layers(model)
        for number in range(there - self.count, there):
            model.get_submodule(f"{prefix}.{number}").requires_grad_(True)
        return model


class Bias(Method):
    """Only the biases train (BitFit). P = their number; models without biases, such as Llama, are refused.

    Ben Zaken, Ravfogel & Goldberg 2021, arXiv:2106.10199.
    """

    name: ClassVar[str] = "bias"
    references: ClassVar[tuple[str, ...]] = ("benzaken2021bitfit",)

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse a model without biases."""
        part = text_part(model)
        if not any(name.endswith("bias") and name.startswith(part) for name, _ in model.named_parameters()):
            raise UsageError(f"methods.bias: {type(model).__name__} has no biases to train; use another method")

    def prepare(self, model: PreTrainedModel, context: Context) -> PreTrainedModel:
        """Freeze everything except biases; see `Method.prepare`."""
        part = text_part(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias") and name.startswith(part))
        return model


class LnTuning(Method):
    """The normalisation layers train, through PEFT. P = their parameters.

    Zhao et al. 2023, *Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning*, arXiv:2312.11420.
    """

    name: ClassVar[str] = "ln_tuning"
    quantised: ClassVar[tuple[int, ...]] = (4, 8)
    references: ClassVar[tuple[str, ...]] = ("zhao2023lntuning",)

    layers: Layers = Field(
        None, description="decoder layers, counted from 0, or from the top if negative; or e.g. `top-4`; default: all"
    )

    def modules(self, model: PreTrainedModel) -> list[str]:
        """Full names of the normalisation layers: modules of a Norm class with their own parameters.

        Raises:
            UsageError: there are none, or no such layer.
        """
        part = text_part(model)
        names = [
            name
            for name, module in model.named_modules()
            if "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))
            if name.startswith(part)
        ]
        if self.layers is not None:
            prefix, _ = decoder_layers(model)
            inside = tuple(f"{prefix}.{n}." for n in layer_numbers(model, self.layers, "methods.ln_tuning"))
            names = [name for name in names if name.startswith(inside)]
        if not names:
            raise UsageError(f"methods.ln_tuning: {type(model).__name__} has no normalisation layers with weights")
        return names

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse a model without normalisation weights."""
        self.modules(model)

    def prepare(self, model: PreTrainedModel, context: Context) -> PeftModel:
        """Wrap the normalisation layers; see `Method.prepare`."""
        from peft import LNTuningConfig, TaskType

        config = LNTuningConfig(task_type=TaskType.CAUSAL_LM, target_modules=self.modules(model))
        return adapt(model, config, "methods.ln_tuning")

"""Which modules of a model a method changes: found in the model itself, for any architecture.

torch is imported only when a function needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from ...errors import ForgettingError, UsageError
from ...models import failures, transformers_internals
from .base import Context, Method

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel

ATTENTION = re.compile(r"attn|attention")
"""What names of attention modules have in common (self_attn, attention, linear_attn, ...)."""


def _known(value: Any) -> Any:
    several = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    if several or value in ("all-linear", "attention"):
        return value
    raise ValueError(f"got {value!r}; give all-linear, attention, or a list of module names such as [q_proj, v_proj]")


def _layers(value: Any) -> Any:
    if value is None or (isinstance(value, str) and re.fullmatch(r"top-[1-9]\d*", value)):
        return value
    if isinstance(value, list | tuple) and value and all(type(layer) is int for layer in value):
        if len(set(value)) < len(value):
            raise ValueError(f"got {list(value)}; give each layer once")
        return list(value)
    raise ValueError(f"got {value!r}; give a list of layer numbers such as [0, 1] or [-1], or top-4")


Layers = Annotated[list[int] | str | None, BeforeValidator(_layers)]


class Targeted(Method):
    """A method that changes chosen linear modules in chosen decoder layers.

    Class attributes:
        conv1d: whether PEFT also supports Conv1D, GPT-2's transposed linear module.
    """

    conv1d: ClassVar[bool] = True

    target_modules: Annotated[str | list[str], BeforeValidator(_known)] = Field(
        "all-linear",
        description="`all-linear` (all except the output head), `attention` (its linear modules), or module names",
    )
    layers: Layers = Field(
        None, description="decoder layers, counted from 0, or from the top if negative; or e.g. `top-4`; default: all"
    )

    def targets(self, model: PreTrainedModel) -> str | list[str]:
        """PEFT's `target_modules`.

        Raises:
            UsageError: no such module or layer.
        """
        return choose(model, self.target_modules, self.layers, f"methods.{self.name}")

    def check(self, model: PreTrainedModel, context: Context) -> None:
        """Refuse modules and layers that the model does not have, and module types that PEFT does not support."""
        self.targets(model)
        transposed = [name for name, module in self.linear(model).items() if not hasattr(module, "in_features")]
        if transposed and not self.conv1d:
            raise UsageError(
                f"methods.{self.name}: {transposed[0]} is a Conv1D, which PEFT does not support for this method; "
                "give other target_modules or use another method"
            )

    def linear(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """The chosen modules, by full name."""
        chosen = self.targets(model)
        modules = linear_modules(model)
        return modules if isinstance(chosen, str) else {name: modules[name] for name in matching(modules, chosen)}

    def check_rank(self, rank: int, model: PreTrainedModel) -> None:
        """Refuse a rank above that of a target: there are not enough singular vectors to start from."""
        modules = self.linear(model)
        name = min(modules, key=lambda key: min(shape(modules[key])), default=None)
        if name is not None and rank > min(shape(modules[name])):
            inputs, outputs = shape(modules[name])
            raise UsageError(
                f"methods.{self.name}.rank: got {rank}; {name} has {inputs} inputs and {outputs} outputs, "
                f"so at most {min(inputs, outputs)}"
            )


def text_part(model: PreTrainedModel) -> str:
    """Prefix of the modules that text goes through, in a model that also reads images; empty for any other model.

    The others would get no gradient from text, and would count as trainable parameters.
    """
    if model.config.get_text_config() is model.config or not hasattr(model, "get_decoder"):
        return ""
    decoder = model.get_decoder()
    return next((f"{name}." for name, module in model.named_modules() if name and module is decoder), "")


def linear_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """All linear modules of the text part except the output head, by name; includes GPT-2's Conv1D."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head, part = model.get_output_embeddings(), text_part(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head and name.startswith(part)
    }


def shape(module: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear module."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    inputs, outputs = module.weight.shape  # Conv1D keeps its weight transposed
    return int(inputs), int(outputs)


def decoder_layers(model: PreTrainedModel) -> tuple[str, int]:
    """Name and length of the list of decoder layers: the outermost list of modules for text, the longest of several.

    Raises:
        UsageError: the model has no such list.
    """
    import torch

    part = text_part(model)
    inside = [(name, module) for name, module in model.named_modules() if name.startswith(part)]
    lists = {name: len(m) for name, m in inside if isinstance(m, torch.nn.ModuleList) and len(m)}
    outermost = {name: n for name, n in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    if not outermost:
        raise UsageError(f"layers: no list of decoder layers found in {type(model).__name__}; give target_modules")
    name = max(outermost, key=lambda key: outermost[key])
    return name, outermost[name]


def layer_numbers(model: PreTrainedModel, layers: list[int] | str, where: str) -> list[int]:
    """The chosen decoder layers, counted from 0.

    Raises:
        UsageError: a layer that the model does not have.
    """
    _, count = decoder_layers(model)
    if isinstance(layers, str):
        top = int(layers.removeprefix("top-"))
        if top > count:
            raise UsageError(f"{where}.layers: got '{layers}'; the model has {count} decoder layers")
        return list(range(count - top, count))
    if beyond := [layer for layer in layers if not -count <= layer < count]:
        raise UsageError(f"{where}.layers: got {beyond[0]}; the model has {count} decoder layers, 0 to {count - 1}")
    return sorted({layer % count for layer in layers})


def matching(names: Any, wanted: list[str]) -> list[str]:
    """The full names that end in a wanted name, as PEFT matches them."""
    return [name for name in names if any(name == want or name.endswith(f".{want}") for want in wanted)]


def choose(
    model: PreTrainedModel, wanted: str | list[str], layers: list[int] | str | None, where: str
) -> str | list[str]:
    """Target modules for PEFT: its shorthand, names as given, or full names.

    Args:
        model: the base model.
        wanted: `all-linear`, `attention`, or names.
        layers: chosen decoder layers; None means all.
        where: names the method in errors.

    Raises:
        UsageError: nothing matches.
    """
    names, part, head = list(linear_modules(model)), text_part(model), model.get_output_embeddings()
    if isinstance(wanted, list):
        every = [name for name, m in model.named_modules() if name and (name.startswith(part) or m is head)]
        missing = [want for want in wanted if not matching(every, [want])]
        if missing:
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
            raise UsageError(f"{where}.target_modules: no module '{missing[0]}'; the model's linear modules: {known}")
        if layers is None and not part:
            return wanted
        names = matching(every, wanted)
    elif wanted == "all-linear" and layers is None and not part:
        return wanted
    if wanted == "attention":
        names = [name for name in names if any(ATTENTION.search(part) for part in name.lower().split("."))]
    if layers is not None:
        prefix, _ = decoder_layers(model)
        inside = tuple(f"{prefix}.{number}." for number in layer_numbers(model, layers, where))
        names = [name for name in names if name.startswith(inside)]
    if not names:
        raise UsageError(f"{where}.target_modules: {wanted} matches no module; give a list of module names")
    return names


def adapt(model: PreTrainedModel, config: PeftConfig, where: str) -> PeftModel:
    """Add the adapter that a PEFT configuration describes to the model.

    Raises:
        UsageError: PEFT refuses the options for this model (the first line of its error is kept), or nothing would
            train.
    """
    from peft import get_peft_model

    adapted: PeftModel = refused(lambda: get_peft_model(model, config), where)
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise UsageError(f"{where}: nothing in {type(model).__name__} would train; choose other target modules")
    return adapted


def refused(call: Callable[[], Any], where: str) -> Any:
    """Call PEFT, and turn its refusal into a UsageError that names the method."""
    try:
        with transformers_internals.never_asking():
            return call()
    except ForgettingError:
        raise
    except Exception as error:  # PEFT raises anything for a configuration that it does not expect
        if failures.out_of_memory(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{where}: {lines[0][:300]}") from error

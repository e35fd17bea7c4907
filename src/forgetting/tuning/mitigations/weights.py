"""The weights that a prepared model changes, as differences from where they start: W - W_start, with gradients.

For full fine-tuning and its parts these are the parameters themselves. For PEFT's additive adapters (LoRA, LoHa, LoKr)
it is the change that they make to their layer, so a penalty means the same for an adapter as for full fine-tuning,
however the change is factored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...errors import UsageError
from ...models import peft_internals
from ...models.adapters import is_peft, is_prompt_learning

ADDITIVE = ("LORA", "LOHA", "LOKR")
"""PEFT types whose layers compute W x + scaling * delta(x) and return the whole change from get_delta_weight."""


@dataclass(frozen=True)
class Change:
    """One weight that training changes.

    Attributes:
        name: the parameter's name in the base model.
        delta: W - W_start, with gradient.
        starts_at_zero: whether W_start is the base model's weight with nothing added.
    """

    name: str
    delta: Callable[[], Tensor]
    starts_at_zero: bool = True


def weight_changes(model: nn.Module, wanted_by: str) -> list[Change]:
    """All weights that the model, as prepared by its method, will change.

    Args:
        model: prepared, not yet trained.
        wanted_by: the mitigation, for errors.

    Raises:
        UsageError: the method does not add to weights.
    """
    if not is_peft(model):
        return [_direct(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = _adapted_layers(model, wanted_by)
    return [_added(name, layer, adapter) for name, layer, adapter in layers]


def adapter_scalings(model: nn.Module, wanted_by: str) -> list[tuple[dict[str, float], str]]:
    """The scaling of each adapted layer, to which its change of the weight is proportional, and the key in it.

    Raises:
        UsageError: as `weight_changes`.
    """
    return [(peft_internals.scaling(layer), adapter) for _, layer, adapter in _adapted_layers(model, wanted_by)]


def _direct(name: str, parameter: nn.Parameter) -> Change:
    start = parameter.detach().clone()
    return Change(name, lambda: parameter.float() - start.float())


def _added(name: str, layer: Any, adapter: str) -> Change:
    delta = peft_internals.delta(layer, adapter)
    start = delta().detach()
    weight = f"{name.removeprefix(peft_internals.PREFIX)}.weight"
    if not start.any():
        return Change(weight, lambda: delta().float())
    start = start.clone()
    return Change(weight, lambda: delta().float() - start.float(), starts_at_zero=False)


def _adapted_layers(model: Any, wanted_by: str) -> list[tuple[str, Any, str]]:
    """Name, layer and adapter of each layer with an additive adapter."""
    config = model.active_peft_config
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    refused = f"mitigations.{wanted_by}: does not work with {kind}"
    if is_prompt_learning(model):
        raise UsageError(f"{refused}: a prompt changes no weight")
    if kind not in ADDITIVE:
        raise UsageError(f"{refused}: its change of a weight is not a sum W + dW with a scale; allowed: {ADDITIVE}")
    if getattr(config, "use_dora", False):
        raise UsageError(f"{refused} with use_dora: DoRA rescales the whole weight")
    adapter = model.active_adapter
    layers = [(name, layer, adapter) for name, layer in peft_internals.layers(model)]
    base = peft_internals.BASE_LAYER.name
    own = {id(p) for _, layer, _ in layers for n, p in layer.named_parameters() if base not in n}
    beside = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in own]
    if beside:
        raise UsageError(f"{refused}: it also trains {beside[0]}, which is not part of its adapters")
    return layers

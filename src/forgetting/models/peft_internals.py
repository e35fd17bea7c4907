"""Undocumented parts of PEFT that we use, collected in one place because an upgrade may break them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from . import private_names
from .private_names import PrivateName

SEEN = "0.20.0 to 0.21.2"


def _name(path: str, purpose: str) -> PrivateName:
    return PrivateName("peft", path, purpose, SEEN)


HEAD = "a head with an adapter on it cannot be told from the base model's"
CHANGE = "the change that an adapter makes to a weight is unknown"
DISABLED = _name("object:_adapters_disabled", "a base model cannot be told from its tuned one")  # of a PeftModel
LAYER = _name("peft.tuners.tuners_utils:BaseTunerLayer", CHANGE)
MERGED = _name("peft.tuners.tuners_utils:BaseTunerLayer.merged", "a merged adapter would be taken for the base model")
SWITCH = _name("peft.tuners.tuners_utils:BaseTunerLayer.disable_adapters", HEAD)
SAVING = _name("peft.utils.other:AuxiliaryTrainingWrapper", HEAD)  # of modules_to_save and trainable tokens
SAVED_SWITCH = _name("peft.utils.other:AuxiliaryTrainingWrapper.disable_adapters", HEAD)
BASE_LAYER = _name("object:base_layer", HEAD)  # of a BaseTunerLayer: the layer under it
ORIGINAL = _name("object:original_module", HEAD)  # of an AuxiliaryTrainingWrapper: the module it replaces
SAVED = _name("object:modules_to_save", HEAD)  # of a ModulesToSaveWrapper: the modules used instead, by adapter
SCALING = _name("object:scaling", CHANGE)  # of a layer, by adapter; PEFT has set_scale but no getter
DELTAS = tuple(
    _name(f"peft.tuners.{kind}.get_delta_weight", CHANGE)
    for kind in ("lora.layer:Linear", "loha.layer:LoHaLayer", "lokr.layer:LoKrLayer")
)
CONFIGS = _name("peft:PEFT_TYPE_TO_CONFIG_MAPPING", "PEFT's methods cannot be listed")
IA3_TARGETS = _name("peft.utils:TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING", "ia3 needs target_modules")
IA3_INNER = _name("peft.utils:TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING", "ia3 needs feedforward_modules")
CORDA_CONFIG = _name("peft.tuners.lora.config:CordaConfig", "corda cannot read its calibration text")
CORDA = _name("peft.tuners.lora.corda:preprocess_corda", "corda cannot read its calibration text")
NAMES = (
    *(LAYER, MERGED, SWITCH, SAVING, SAVED_SWITCH, *DELTAS, CONFIGS),
    *(IA3_TARGETS, IA3_INNER, CORDA_CONFIG, CORDA),
)
"""Names on classes or modules; the others are on objects."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
"""Attributes of a torch module with what was registered on its forward; there is no other way to ask."""
PREFIX = "base_model.model."
"""PEFT's prefix for the names of a base model's modules."""


def disabled(model: Any) -> bool:
    """Whether a PeftModel's adapters are currently disabled."""
    return bool(DISABLED.of(model))


def merged(model: nn.Module) -> bool:
    """Whether any adapter of a PeftModel is merged into the base weights."""
    MERGED.value()
    return any(layer.merged for _, layer in layers(model))


def layers(model: nn.Module) -> list[tuple[str, Any]]:
    """The layers that an adapter puts in place of the base model's, by name."""
    kind = LAYER.value()
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]


def scaling(layer: Any) -> dict[str, float]:
    """The factor of a layer's change to the weight, for each adapter; writing to it changes the layer."""
    found: dict[str, float] = SCALING.of(layer)
    return found


def delta(layer: Any, adapter: str) -> Callable[[], Tensor]:
    """A function that computes what an additive adapter adds to a layer's weight, with its gradient."""
    private_names.check(DELTAS)
    return lambda: layer.get_delta_weight(adapter)


@dataclass(frozen=True)
class Lora:
    """The parts of a plain LoRA layer: base(x) + scale * b(a(x)), all three linear, a and b without bias.

    Attributes:
        adapter: its name.
        scaling: by adapter; the layer's own mapping, so that changes show here.
    """

    base: nn.Linear
    a: nn.Linear
    b: nn.Linear
    adapter: str
    scaling: dict[str, float]

    @property
    def scale(self) -> float:
        """The current scale."""
        return float(self.scaling[self.adapter])


def lora(layer: Any, *, evaluating: bool = False) -> Lora | None:
    """The parts of a layer that is plain LoRA on a frozen linear layer, without dropout; None for any other layer.

    `evaluating`: the layer is in evaluation mode and does not train, so that dropout and gradients do not count.
    """
    from peft.tuners.lora import Linear

    names = layer.active_adapters if type(layer) is Linear else []
    if len(names) != 1 or getattr(layer, "lora_variant", {}).get(names[0]) is not None:
        return None
    held = [getattr(layer, part, {}) for part in ("lora_A", "lora_B", "lora_dropout")]
    still = (nn.Identity, nn.Dropout) if evaluating else (nn.Identity,)
    if not all(names[0] in part for part in held) or type(held[2][names[0]]) not in still:
        return None
    base, a, b = parts = BASE_LAYER.of(layer), held[0][names[0]], held[1][names[0]]
    if not all(
        type(part) is nn.Linear and part.weight.dim() == 2 for part in parts
    ):  # a sharded weight has one dimension
        return None
    if any("forward" in vars(part) for part in (layer, *parts)) or a.bias is not None or b.bias is not None:
        return None
    trains = not evaluating and any(parameter.requires_grad for parameter in base.parameters())
    if base.weight.is_meta or trains or any(getattr(part, hooks) for part in (a, b) for hooks in HOOKS):
        return None
    return Lora(base, a, b, names[0], scaling(layer))


def adapted(module: Any) -> bool:
    """Whether an adapter is on a module or inside it."""
    return isinstance(module, nn.Module) and any(_switched(part) for part in module.modules())


def acts_in(module: nn.Module) -> bool:
    """Whether an adapter that is not disabled is on a module or inside it."""
    return any(_switched(part) and not part.disable_adapters for part in module.modules())


def acting(module: Any) -> Any:
    """The module used in place of one with an adapter on it; the module itself if both are used together."""
    while _switched(module):
        if module.disable_adapters:
            inner = _under(module)
        else:
            saved = getattr(module, SAVED.name, None)
            inner = saved[module.active_adapters[0]] if saved is not None and len(module.active_adapters) == 1 else None
        if not isinstance(inner, nn.Module):
            return module
        module = inner
    return module


def _switched(module: Any) -> bool:
    """Whether a module is one of PEFT's that `disable_adapter` switches off."""
    if not type(module).__module__.startswith("peft"):
        return False
    private_names.check((SWITCH, SAVED_SWITCH))
    return isinstance(getattr(module, SWITCH.name, None), bool)


def _under(module: Any) -> Any:
    """The base model's module under or behind one of PEFT's; None if it is neither kind."""
    if isinstance(module, LAYER.value()):
        return BASE_LAYER.of(module)
    return ORIGINAL.of(module) if isinstance(module, SAVING.value()) else None


def config_types() -> dict[str, Any]:
    """The configuration class of each PEFT method, by name."""
    found: Mapping[Any, Any] = CONFIGS.value()
    return {str(kind.value): config for kind, config in found.items()}


def ia3_choice(architecture: str) -> tuple[list[str], list[str]] | None:
    """PEFT's target and feed-forward modules of (IA)³ for an architecture; None if PEFT has no default for it."""
    targets, inner = IA3_TARGETS.value(), IA3_INNER.value()
    return (list(targets[architecture]), list(inner[architecture])) if {architecture} <= {*targets} & {*inner} else None

"""Models inside wrappers and with adapters: which model it is, its base, and passes that leave it unchanged."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..files import write_atomically
from . import accelerate_internals, bitsandbytes_internals, bounds, peft_internals, sharding, sources, split_lora
from .sources import Source


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or autocast; afterwards the model and the random states are restored.

    Uses `no_grad`, not `inference_mode`: a buffer that a module keeps from this pass (for example rotary tables) would
    be an inference tensor, and the next training step would fail on it.

    Without autocast, a model is measured in the dtype of its weights, just as when it is loaded from disk. Otherwise a
    trainer with mixed precision would measure in bfloat16, but only when its own forward is called.
    """
    modes = [(module, module.training) for module in model.modules()]
    frozen = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    devices = {parameter.device for parameter, _ in frozen}
    seeded = sorted(device.index or 0 for device in devices if device.type == "cuda")
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=seeded))
        stack.enter_context(torch.no_grad())
        for kind in {device.type for device in devices} & {"cpu", "cuda"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(accelerate_internals.own_forward(model))
        stack.enter_context(bitsandbytes_internals.layout_kept(model))
        stack.enter_context(sharding.parts_again(model))
        stack.enter_context(split_lora.evaluating(model) if is_peft(model) else nullcontext())
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, flag in frozen:
                if parameter.requires_grad != flag:
                    parameter.requires_grad_(flag)


@contextmanager
def as_base(model: nn.Module) -> Iterator[None]:
    """A PeftModel with its adapters disabled; any other model unchanged.

    An untrained adapter is not used as the base: some adapters (such as prompt tuning) are not the identity before
    training, so a "before" measured on them makes training look like remembering (PEFT pull request 3419).

    Raises:
        UsageError: an adapter is merged into the base weights.
    """
    if not is_peft(model):
        yield
        return
    if peft_internals.merged(model):
        raise UsageError(
            "the adapter is merged into the base weights, so the base model cannot be recovered; call "
            "unmerge_adapter() first, or give the base model separately"
        )
    with sharding.parts_again(model):
        kept = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with model.disable_adapter(), sharding.parts_again(model):  # type: ignore[operator]
        yield
    for parameter, flag in kept:  # enabling adapters again makes all their parameters trainable
        if parameter.requires_grad != flag:
            parameter.requires_grad_(flag)


def is_peft(model: Any) -> bool:
    """Whether the model is a PeftModel; does not import peft, since no model can be one before it is imported."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def is_prompt_learning(model: Any) -> bool:
    """Whether the active adapter adds virtual tokens instead of changing layers."""
    return is_peft(model) and bool(getattr(model.active_peft_config, "is_prompt_learning", False))


def disabled(model: Any) -> bool:
    """Whether a PeftModel's adapters are currently disabled, as by `as_base`; False for any other model."""
    return is_peft(model) and peft_internals.disabled(model)


def needs_whole_forward(model: Any) -> str:
    """What works only if the PeftModel itself is called, not the model inside it, in words; "" if nothing."""
    if not is_peft(model) or disabled(model):
        return ""
    if is_prompt_learning(model):
        return "virtual tokens"
    if str(model.active_peft_config.peft_type).endswith("SHADOW"):
        return "shadow states"
    return "invocation tokens" if invocations(model) else ""


def invocations(model: Any) -> list[list[int]]:
    """The invocation tokens of a PeftModel's active adapters (aLoRA, arXiv:2504.12397), in order for each adapter."""
    if not is_peft(model):
        return []
    configs = [model.peft_config[name] for name in model.active_adapters]
    return [tokens for config in configs if (tokens := getattr(config, "alora_invocation_tokens", None))]


def positions(model: Any) -> int | None:
    """The model's maximum text length in tokens, minus virtual tokens before it; None if unlimited."""
    config = (model.get_base_model() if is_peft(model) else model).config.get_text_config()
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if limit is None or limit < 1:
        return None
    virtual = getattr(model.active_peft_config, "num_virtual_tokens", None) if is_prompt_learning(model) else None
    return limit - (virtual or 0)


def unwrapped(model: Any) -> Any:
    """The model inside DistributedDataParallel or torch.compile wrappers."""
    while (inner := getattr(model, "_orig_mod", None)) is not None or (
        isinstance(inner := getattr(model, "module", None), nn.Module) and not hasattr(model, "config")
    ):
        model = inner
    return model


def name_base(folder: Path, base: Source) -> None:
    """Make a saved adapter name its base model by Hub id and commit instead of a folder in the cache."""
    file, card = folder / sources.ADAPTER_CONFIG, folder / "README.md"
    if base.commit is None or not file.exists():
        return
    config = bounds.read_config(file)
    there = str(config.get("base_model_name_or_path"))
    config |= {"base_model_name_or_path": base.name, "revision": base.commit}
    write_atomically(file, json.dumps(config, indent=2, sort_keys=True) + "\n")
    if card.exists():
        write_atomically(card, card.read_text(encoding="utf-8").replace(there, base.name))

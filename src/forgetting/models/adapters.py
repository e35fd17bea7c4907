"""A model under its wrappers and adapters: what it is, its base, and passes that leave no trace."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..files import write_atomically
from . import accelerate_internals, bitsandbytes_internals, bounds, peft_internals, sharding, sources
from .sources import Source


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or autocast; afterwards the model and the random states are as they were.

    `no_grad` and not `inference_mode`: a buffer that a module keeps from this pass (rotary tables, say) would be an
    inference tensor, and the next training step would fail on it.

    Without autocast, a model is measured in the dtype of its weights, as it is when it is loaded from disk; a trainer
    under mixed precision would otherwise measure in bfloat16, and only where its own forward is called.
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
    """A PeftModel with its adapters disabled; any other model as it is.

    Never an untrained adapter: some (prompt tuning, for one) are not the identity before training, and a "before"
    taken on them makes training look like remembering (PEFT pull request 3419).
    """
    if not is_peft(model):
        yield
        return
    if peft_internals.merged(model):
        raise UsageError(
            "the adapter is merged into the base weights, so the base model is gone; call unmerge_adapter() first, "
            "or give the base model itself"
        )
    with sharding.parts_again(model):
        kept = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with model.disable_adapter(), sharding.parts_again(model):  # type: ignore[operator]
        yield
    for parameter, flag in kept:  # PEFT makes every adapter parameter trainable when it enables adapters again
        if parameter.requires_grad != flag:
            parameter.requires_grad_(flag)


def is_peft(model: Any) -> bool:
    """Whether the model is a PeftModel, without importing peft: where nobody has, none is."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def is_prompt_learning(model: Any) -> bool:
    """Whether the active adapter adds virtual tokens instead of changing layers."""
    return is_peft(model) and bool(getattr(model.active_peft_config, "is_prompt_learning", False))


def disabled(model: Any) -> bool:
    """Whether a PeftModel's adapters are disabled at present, as `as_base` does; False for any other model."""
    return is_peft(model) and peft_internals.disabled(model)


def needs_whole_forward(model: Any) -> str:
    """In words, what of a PeftModel acts only where the PeftModel itself is called and not the model inside; or ""."""
    if not is_peft(model) or disabled(model):
        return ""
    if is_prompt_learning(model):
        return "virtual tokens"
    return "invocation tokens" if invocations(model) else ""


def invocations(model: Any) -> list[list[int]]:
    """The tokens that wake a PeftModel's active adapters (aLoRA, arXiv:2504.12397), each adapter's in order."""
    if not is_peft(model):
        return []
    configs = [model.peft_config[name] for name in model.active_adapters]
    return [tokens for config in configs if (tokens := getattr(config, "alora_invocation_tokens", None))]


def positions(model: Any) -> int | None:
    """Tokens of text that a model was built for at most, less the virtual ones before them; None of any number."""
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
    """Have a saved adapter name its base model by Hub id and commit, where it names the folder in the cache."""
    file, card = folder / sources.ADAPTER_CONFIG, folder / "README.md"
    if base.commit is None or not file.exists():
        return
    config = bounds.read_config(file)
    there = str(config.get("base_model_name_or_path"))
    config |= {"base_model_name_or_path": base.name, "revision": base.commit}
    write_atomically(file, json.dumps(config, indent=2, sort_keys=True) + "\n")
    if card.exists():
        write_atomically(card, card.read_text(encoding="utf-8").replace(there, base.name))

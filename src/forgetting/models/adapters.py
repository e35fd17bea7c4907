"""A model under its wrappers and adapters: what it is, its base, and passes that leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import ForgettingError, UsageError

R = TypeVar("R")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model and the random states are as they were.

    `no_grad` and not `inference_mode`: a buffer that a module keeps from this pass (rotary tables, say) would be an
    inference tensor, and the next training step would fail on it.
    """
    modes = [(module, module.training) for module in model.modules()]
    frozen = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    devices = {parameter.device for parameter, _ in frozen if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(d.index or 0 for d in devices)), torch.no_grad():
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
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise UsageError(
            "the adapter is merged into the base weights, so the base model is gone; call unmerge_adapter() first, "
            "or give the base model itself"
        )
    kept = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with model.disable_adapter():  # type: ignore[operator]
        yield
    for parameter, flag in kept:  # PEFT makes every adapter parameter trainable when it enables adapters again
        if parameter.requires_grad != flag:
            parameter.requires_grad_(flag)


def is_peft(model: Any) -> bool:
    """Whether the model is a PeftModel, without importing peft for models that are none."""
    return any(cls.__name__ == "PeftModel" and cls.__module__.startswith("peft") for cls in type(model).__mro__)


def is_prompt_learning(model: Any) -> bool:
    """Whether the active adapter adds virtual tokens instead of changing layers."""
    return is_peft(model) and bool(getattr(model.active_peft_config, "is_prompt_learning", False))


def unwrapped(model: Any) -> Any:
    """The model inside DistributedDataParallel or torch.compile wrappers."""
    while (inner := getattr(model, "_orig_mod", None)) is not None or (
        isinstance(inner := getattr(model, "module", None), nn.Module) and not hasattr(model, "config")
    ):
        model = inner
    return model


def adapter_config(source: str) -> Any | None:
    """The PEFT configuration of an adapter folder or Hub id; None where the source is a full model.

    Raises:
        UsageError: a damaged adapter_config.json, or weights that are not safetensors.
    """
    folder = Path(source).expanduser()
    if folder.is_file():
        raise UsageError(f"model '{source}': a file; give the folder that holds the adapter or the model")
    if folder.is_dir() and not (folder / "adapter_config.json").exists():
        return None
    if folder.is_dir() and not (folder / "adapter_model.safetensors").exists():
        raise UsageError(
            f"adapter '{source}': no adapter_model.safetensors in this folder (pickled weights are refused)"
        )
    if not folder.is_dir() and (folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1):
        raise UsageError(f"model '{source}': no such folder")
    from peft import PeftConfig

    try:
        found = PeftConfig.from_pretrained(str(folder) if folder.is_dir() else source)
        if getattr(found, "megatron_config", None):
            # PEFT would import the module that `megatron_core` names
            raise UsageError(f"adapter '{source}': megatron_config names code to import, which is refused")
        return found
    except (OSError, ValueError, TypeError, KeyError) as error:
        if folder.is_dir():
            raise UsageError(f"adapter '{source}': adapter_config.json cannot be read: {_first_line(error)}") from None
        if isinstance(error, ValueError):
            return None  # the Hub has no adapter_config.json there: a full model, or nothing, as its loader will say
        raise ForgettingError(f"model '{source}': no such folder here, and the Hub cannot be reached") from None


def attach(model: Any, source: str) -> Any:
    """The model with an adapter on it, active and frozen.

    Raises:
        UsageError: the adapter does not fit the model: it was made for another one.
    """
    from peft import PeftModel

    folder = Path(source).expanduser()
    if not folder.is_dir():
        _refuse_pickled(source)
    if (rows := _saved_rows(folder)) is not None and rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return fitting(source, lambda: PeftModel.from_pretrained(model, str(folder) if folder.is_dir() else source)).eval()


def _refuse_pickled(source: str) -> None:
    """PEFT takes adapter_model.bin, a pickle, where the Hub has no safetensors; we do not.

    Raises:
        UsageError: no adapter_model.safetensors there.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        hf_hub_download(source, "adapter_model.safetensors")
    except (EntryNotFoundError, LocalEntryNotFoundError):
        raise UsageError(
            f"adapter '{source}': no adapter_model.safetensors to be had (pickled weights are refused)"
        ) from None


def fitting(source: str, call: Callable[[], R]) -> R:
    """Call what loads an adapter; its errors as one line."""
    try:
        return call()
    except (RuntimeError, ValueError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = next((line for line in lines if "size mismatch" in line), lines[0] if lines else "")
        raise UsageError(
            f"adapter '{source}' does not fit the base model; was it made for another one? ({detail[:200]})"
        ) from None
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise UsageError(f"adapter '{source}': damaged weights: {_first_line(error)}") from None
        raise


def _saved_rows(folder: Path) -> int | None:
    """Rows of an embedding that was saved with the adapter: more than the base model's where tokens were added."""
    path = folder / "adapter_model.safetensors"
    if not path.exists():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            names = [n for n in file.keys() if n.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight"))]  # noqa: SIM118
            return max((file.get_slice(name).get_shape()[0] for name in names), default=None)
    except SafetensorError as error:
        raise UsageError(f"adapter '{folder}': damaged weights: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Load the two models of a comparison: base, and adapter or full model; across devices and quantised on request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..config.schema import ModelConfig
from ..errors import ForgettingError, UsageError
from . import loading as base_room

R = TypeVar("R")


@dataclass(frozen=True)
class Placement:
    """Where a model's weights go.

    Attributes:
        spread: spread layers over all GPUs, then memory, as accelerate does (`device_map="auto"`).
        bits: 4 or 8 loads linear layers quantised by bitsandbytes, which needs a GPU; None as stored.
    """

    spread: bool = False
    bits: Literal[4, 8] | None = None

    @property
    def plain(self) -> bool:
        """Whether this is what `load_base` does."""
        return not self.spread and self.bits is None


def load(config: ModelConfig, placement: Placement) -> base_room.Base:
    """A base model with its tokenizer, as `base.load_base`, placed.

    Raises:
        UsageError: as load_base; bitsandbytes or a GPU is missing.
    """
    if placement.plain:
        return base_room.load_base(config)
    model = load_model(config, placement)
    revision = base_room.weights_revision(model, base_room.resolve_source(config))
    dtype = str(model.dtype).removeprefix("torch.") + (f"-{placement.bits}bit" if placement.bits else "")
    return base_room.Base(model, base_room.load_tokenizer(config), f"{revision}/{dtype}", revision)


def load_model(config: ModelConfig, placement: Placement) -> Any:
    """A causal language model without its tokenizer, in evaluation mode.

    Raises:
        UsageError: no such model; bitsandbytes or a GPU is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"device_map": "auto"} if placement.spread or placement.bits else {}
    if placement.bits is not None:
        options["quantization_config"] = _quantization(placement.bits)
    model = base_room.load_pretrained(
        AutoModelForCausalLM.from_pretrained,
        config,
        base_room.resolve_source(config),
        dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
        use_safetensors=True,
        trust_remote_code=config.trust_remote_code,
        **options,
    )
    if not options:
        model.to(base_room.pick_device(config.device))
    return model.eval()


def _quantization(bits: Literal[4, 8]) -> Any:
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        raise UsageError(f"--bits {bits}: quantised loading needs a GPU; leave it out to measure the stored weights")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(f"--bits {bits}: needs bitsandbytes; pip install 'forgetting[gpu]'")
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)


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

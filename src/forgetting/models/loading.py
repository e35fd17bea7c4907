"""The base model and its tokenizer at a pinned revision; parameter counts; what it must have to be measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config.schema import ModelConfig
from ..errors import UsageError
from . import sources
from .sources import Source

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Base:
    """A loaded base model.

    Attributes:
        model: on its device, in eval mode, all parameters frozen or not as transformers loads them.
        tokenizer: fast, with a pad token.
        key: content key of weights, revision and dtype: equal keys mean equal base targets.
        revision: the Hub commit, or `sha256:...` of a local folder's weights.
        source: where it lies; None of a model that was not loaded by name.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    key: str
    revision: str
    source: Source | None = None

    def pinned(self, config: ModelConfig) -> ModelConfig:
        """The configuration, at the commit that this model was loaded from: loaded again, it is the same model."""
        commit = None if self.source is None else self.source.commit
        return config.model_copy(update={"revision": commit or config.revision})


def load_base(config: ModelConfig, source: Source | None = None) -> Base:
    """Load a causal language model and its tokenizer; weights from safetensors only.

    Args:
        config: what to load, and how.
        source: where it lies, found before; None finds it.

    Raises:
        UsageError: no such model, no weights or tokenizer in the folder, not a causal language model.
        ForgettingError: the Hub could not be reached.
    """
    return load(config, Placement(), source)


def load_tokenizer(config: ModelConfig, source: Source | None = None) -> PreTrainedTokenizerFast:
    """The model's tokenizer, with a pad token (the end token where it has none: padding is always masked).

    Raises:
        UsageError: no tokenizer there, or a slow one that gives no character offsets.
    """
    from transformers import AutoTokenizer

    tokenizer = load_pretrained(
        AutoTokenizer.from_pretrained,
        config,
        (source or base_source(config)).config(),
        trust_remote_code=config.trust_remote_code,
    )
    if not tokenizer.is_fast:
        raise UsageError(f"model '{config.source}': its tokenizer is a slow one; a fast tokenizer.json is needed")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    result: PreTrainedTokenizerFast = tokenizer
    return result


def architecture(config: ModelConfig, source: Source | None = None) -> Any:
    """The model's configuration, of transformers; loads no weights.

    Raises:
        UsageError: no such model, or no usable configuration.
        ForgettingError: the Hub could not be reached.
    """
    from transformers import AutoConfig

    source = source or sources.find(config.source, config.revision, code=config.trust_remote_code)
    check_whole(source)
    return load_pretrained(
        AutoConfig.from_pretrained, config, source.config(), trust_remote_code=config.trust_remote_code
    )


def max_context(config: ModelConfig, source: Source | None = None) -> int | None:
    """Positions that the model was built for, or None where its config does not say; loads no weights."""
    positions: int | None = getattr(architecture(config, source).get_text_config(), "max_position_embeddings", None)
    return positions


def base_source(config: ModelConfig) -> Source:
    """Where a whole model lies.

    Raises:
        UsageError: no such folder or Hub id; it is an adapter, or lacks its config.
        ForgettingError: the Hub could not be reached.
    """
    source = sources.find(config.source, config.revision, code=config.trust_remote_code)
    check_whole(source)
    return source


def check_whole(source: Source) -> None:
    """Refuse what is not a model.

    Raises:
        UsageError: it is an adapter, or has no config.json.
    """
    if source.has(sources.ADAPTER_CONFIG) and not source.has(sources.CONFIG):
        raise UsageError(f"model '{source.name}': an adapter, not a base model; give the model that it was made for")
    if not source.has(sources.CONFIG):
        raise UsageError(f"model '{source.name}': no config.json in this {source.place}, so it is not a model")


def load_pretrained(loader: Any, config: ModelConfig, folder: Path, **options: Any) -> Any:
    """Call a transformers loader on a folder; its many errors as one line that names the model.

    Raises:
        UsageError: the model, weights or configuration are wrong.
    """
    name = f"model '{config.source}'" + (f" at revision '{config.revision}'" if config.revision else "")
    try:
        return loader(str(folder), **options)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "custom code" in first:
            raise UsageError(
                f"{name}: needs Python code that comes with it, which is not run unless you say so with "
                "trust_remote_code (--trust-remote-code); read the code first"
            ) from None
        raise UsageError(f"{name}: cannot be loaded: {first}") from None
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise UsageError(f"{name}: damaged weights: {error}") from None
        raise


def pick_device(name: str) -> torch.device:
    """A device by name; `auto` is the first GPU, else the CPU.

    Raises:
        UsageError: not a device, or one that this machine lacks.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # not of the device "meta", which computes nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"device '{name}': not available here ({reason}); use auto or cpu") from None
    return device


def count_parameters(model: torch.nn.Module, *, trainable: bool) -> int:
    """Parameters counted from the model itself; those that training changes, or all of them.

    A parameter shared by two modules (tied embeddings) counts once.
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@dataclass(frozen=True)
class Placement:
    """Where a model's weights go.

    Attributes:
        spread: spread layers over all GPUs, then memory, as accelerate does (`device_map="auto"`).
        bits: 4 or 8 loads linear layers quantised by bitsandbytes, which needs a GPU; None as stored.
    """

    spread: bool = False
    bits: Literal[4, 8] | None = None


def load(config: ModelConfig, placement: Placement, source: Source | None = None) -> Base:
    """A base model with its tokenizer, as `load_base`, placed.

    Raises:
        UsageError: as load_base; bitsandbytes or a GPU is missing.
    """
    source = source or base_source(config)
    model = load_model(config, placement, source)
    dtype = str(model.dtype).removeprefix("torch.") + (f"-{placement.bits}bit" if placement.bits else "")
    revision = source.content()
    return Base(model, load_tokenizer(config, source), f"{revision}/{dtype}", revision, source)


def load_model(config: ModelConfig, placement: Placement, source: Source | None = None) -> Any:
    """A causal language model without its tokenizer, in evaluation mode.

    Raises:
        UsageError: no such model; bitsandbytes or a GPU is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"device_map": "auto"} if placement.spread or placement.bits else {}
    device = None if options else pick_device(config.device)
    if placement.bits is not None:
        options["quantization_config"] = _quantization(placement.bits)
    # torch >= 2.6 and transformers 5 would also read pickled weights: refused, they can run code.
    model = load_pretrained(
        AutoModelForCausalLM.from_pretrained,
        config,
        (source or base_source(config)).weights(),
        dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
        use_safetensors=True,
        trust_remote_code=config.trust_remote_code,
        **options,
    )
    if device is not None:
        model.to(device)
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

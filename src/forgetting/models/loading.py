"""The base model and its tokenizer at a pinned revision; parameter counts; what it must have to be measured."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config.schema import ModelConfig
from ..errors import ForgettingError, UsageError

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
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    key: str
    revision: str


def load_base(config: ModelConfig) -> Base:
    """Load a causal language model and its tokenizer; weights from safetensors only.

    Raises:
        UsageError: no such model, no weights or tokenizer in the folder, not a causal language model.
        ForgettingError: the Hub could not be reached.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source, device = resolve_source(config), pick_device(config.device)
    dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    # torch >= 2.6 and transformers 5 would also read pickled weights: refused, they can run code.
    model = load_pretrained(
        AutoModelForCausalLM.from_pretrained,
        config,
        source,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=config.trust_remote_code,
    )
    revision = weights_revision(model, source)
    dtype_name = str(model.dtype).removeprefix("torch.")
    model.to(device)
    model.eval()
    return Base(model, load_tokenizer(config), f"{revision}/{dtype_name}", revision)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """The model's tokenizer, with a pad token (the end token where it has none: padding is always masked).

    Raises:
        UsageError: no tokenizer there, or a slow one that gives no character offsets.
    """
    from transformers import AutoTokenizer

    tokenizer = load_pretrained(
        AutoTokenizer.from_pretrained,
        config,
        resolve_source(config),
        trust_remote_code=config.trust_remote_code,
    )
    if not tokenizer.is_fast:
        raise UsageError(f"model '{config.source}': its tokenizer is a slow one; a fast tokenizer.json is needed")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    result: PreTrainedTokenizerFast = tokenizer
    return result


def max_context(config: ModelConfig) -> int | None:
    """Positions that the model was built for, or None where its config does not say; loads no weights."""
    from transformers import AutoConfig

    source, trust = resolve_source(config), config.trust_remote_code
    architecture = load_pretrained(AutoConfig.from_pretrained, config, source, trust_remote_code=trust)
    positions: int | None = getattr(architecture.get_text_config(), "max_position_embeddings", None)
    return positions


def resolve_source(config: ModelConfig) -> str:
    """The folder of `miniature`, a local folder that holds a model, or a Hub id.

    Raises:
        UsageError: a local folder lacks its config, weights or tokenizer, or holds pickled weights only.
    """
    if config.source == "miniature":
        from ..data.miniature import MODEL_DIR

        return str(MODEL_DIR)
    path = Path(config.source).expanduser()
    if path.is_file():
        raise UsageError(f"model '{config.source}': a file; give the folder that holds config.json and weights")
    if not path.is_dir():
        if path.is_absolute() or config.source.startswith((".", "~")) or config.source.count("/") > 1:
            raise UsageError(f"model '{config.source}': no such folder")
        return config.source
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        raise UsageError(f"model '{config.source}': an adapter, not a base model; give the model that it was made for")
    if not (path / "config.json").exists():
        raise UsageError(f"model '{config.source}': no config.json in this folder, so it is not a model")
    if not list(path.glob("*.safetensors")):
        pickled = list(path.glob("*.bin")) + list(path.glob("*.pt"))
        why = " (pickled weights are refused: convert them to safetensors)" if pickled else ""
        raise UsageError(f"model '{config.source}': no *.safetensors weights in this folder{why}")
    return str(path)


def load_pretrained(loader: Any, config: ModelConfig, source: str, **options: Any) -> Any:
    """Call a transformers loader; its many errors as one line that names the model.

    Raises:
        UsageError: the model, revision, weights or configuration are wrong.
        ForgettingError: the Hub could not be reached.
    """
    name = f"model '{config.source}'" + (f" at revision '{config.revision}'" if config.revision else "")
    try:
        return loader(source, revision=config.revision or "main", **options)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "couldn't connect" in first or "offline" in first.lower():
            raise ForgettingError(f"{name}: no such folder here, and the Hub cannot be reached: {first}") from None
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


def weights_revision(model: PreTrainedModel, source: str) -> str:
    """The Hub commit that a model was loaded from, or `sha256:...` of a local folder's weights."""
    commit = getattr(model.config, "_commit_hash", None)
    return str(commit) if commit else f"sha256:{folder_hash(source)}"


def folder_hash(folder: str) -> str:
    """A sha256 over the config and weights of a local folder; kept while the files stay the same."""
    files = [Path(folder) / "config.json", *sorted(Path(folder).glob("*.safetensors"))]
    return _hash(tuple((path, *_stamp(path)) for path in files))


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=8)
def _hash(stamped: tuple[tuple[Path, int, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, *_ in stamped:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


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

    @property
    def plain(self) -> bool:
        """Whether this is what `load_base` does."""
        return not self.spread and self.bits is None


def load(config: ModelConfig, placement: Placement) -> Base:
    """A base model with its tokenizer, as `base.load_base`, placed.

    Raises:
        UsageError: as load_base; bitsandbytes or a GPU is missing.
    """
    if placement.plain:
        return load_base(config)
    model = load_model(config, placement)
    revision = weights_revision(model, resolve_source(config))
    dtype = str(model.dtype).removeprefix("torch.") + (f"-{placement.bits}bit" if placement.bits else "")
    return Base(model, load_tokenizer(config), f"{revision}/{dtype}", revision)


def load_model(config: ModelConfig, placement: Placement) -> Any:
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
    model = load_pretrained(
        AutoModelForCausalLM.from_pretrained,
        config,
        resolve_source(config),
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

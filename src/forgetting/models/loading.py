"""Loads the base model and its tokenizer at a pinned revision, counts parameters, checks that it can be measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.schema import ModelConfig
from ..errors import UsageError
from . import bounds, failures, memory, quantised, sources, tokenizer_files, transformers_internals, weights
from .sources import Source

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Base:
    """A loaded base model.

    Attributes:
        model: on its device, in eval mode, parameters frozen or not as transformers loads them.
        tokenizer: a fast one, with a pad token.
        key: content key of weights, revision, dtype and a model's own code; equal keys mean equal base targets.
        revision: the Hub commit, or `sha256:...` of a local folder's weights.
        source: where it is; None for a model that was not loaded by name.
        notices: what was repaired or ignored while loading it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    key: str
    revision: str
    source: Source | None = None
    notices: tuple[str, ...] = ()

    @property
    def reference_key(self) -> str:
        """The key of the same model, in the same dtype, without quantisation."""
        return key_of(self.revision, quantised.dtype_name(self.model).partition("-")[0], self.model)

    def pinned(self, config: ModelConfig) -> ModelConfig:
        """The configuration, pinned to the commit that was loaded, so that loading it again gives the same model."""
        commit = None if self.source is None else self.source.commit
        return config.model_copy(update={"revision": commit or config.revision})


@dataclass(frozen=True)
class Placement:
    """Where a model's weights go.

    Attributes:
        spread: spread layers over all GPUs, then memory, as accelerate does (`device_map="auto"`).
        host: put weights on the CPU, regardless of the device; FSDP then takes each process's part from there.
    """

    spread: bool = False
    host: bool = False


PLAIN = Placement()


def load_base(config: ModelConfig, source: Source | None = None, placement: Placement = PLAIN) -> Base:
    """Load a causal language model and its tokenizer; only safetensors weights are read.

    Args:
        config: what to load, and how.
        source: where it is, if already found; None finds it.
        placement: where its weights go.

    Raises:
        UsageError: no such model, weights that do not fit it, no tokenizer, not a left-to-right language model; a
            package or a GPU is missing.
        ForgettingError: the Hub could not be reached, or memory is too small.
    """
    source = source or base_source(config)
    model, notices = load_model(config, source, placement)
    revision = source.content()
    tokenizer, found = _tokenizer(config, source)
    dtype = quantised.dtype_name(model)
    if config.bits is None and quantised.bits_of(model.config) is not None:
        dtype += "-as-stored"  # with `bits`, `quantised.prepared` puts all other weights in float32
    key = key_of(revision, dtype, model)
    return Base(model, tokenizer, key, revision, source, (*notices, *found))


def key_of(revision: str, dtype: str, model: Any) -> str:
    """The content key of a base model; see `Base`."""
    code = sources.code_hash(type(model))
    return f"{revision}/{dtype}" + (f"/code-{code[:32]}" if code else "")


def load_model(
    config: ModelConfig, source: Source, placement: Placement = PLAIN, whose: str = "the base model's"
) -> tuple[Any, list[str]]:
    """A causal language model without its tokenizer, in evaluation mode, and notices.

    Args:
        config: what to load, and how.
        source: where it is.
        placement: where its weights go.
        whose: whose weights they are, for errors about them.

    Raises:
        UsageError, ForgettingError: as load_base.
    """
    from .causal import check_causal

    name = called(config)
    device = None if placement.spread else pick_device("cpu" if placement.host else config.device)
    folder = source.weights()
    weights.check_one_set(folder, name)
    notices = []
    if source.has(sources.ADAPTER_CONFIG):
        notices.append(f"{name}: the same {source.place} also contains an adapter; the model is measured without it")
    model, found = _fitting_model(config, folder, device)
    if config.bits is not None:
        with failures.explained(name, "cannot be prepared for training on quantised weights"):
            model = quantised.prepared(model, name)
    elif device is not None:
        with failures.explained(name, f"cannot be put on {device}"):
            model.to(device)
    model.eval()
    named: Iterable[tuple[str, torch.Tensor]] = model.named_parameters()
    if placement.host:
        named = memory.a_few_at_a_time(named, lambda one: one[1].nbytes)
    weights.check_finite(named, f"{name}: {whose}")
    with memory.running_a_few_at_a_time(model) if placement.host else nullcontext():
        check_causal(model, name)
    return model, [*notices, *found]


def _fitting_model(config: ModelConfig, folder: Path, device: torch.device | None) -> tuple[Any, list[str]]:
    """The model of a folder, with all of its weights and no others, and notices.

    It is spread over devices if `device` is None, on `device` if its weights are quantised on loading, else on the CPU.
    """
    import torch

    name = called(config)
    files = weights.of_folder(folder)
    wrapper = weights.wrapped_in(files)
    options: dict[str, Any] = {
        "dtype": config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
        # torch >= 2.6 and transformers 5 would also read pickled weights; refuse them, since they can run code.
        "use_safetensors": True,
        "trust_remote_code": config.trust_remote_code,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # refused by name below
    }
    if device is None:
        options["device_map"] = "auto"
    if wrapper is not None:
        options["key_mapping"] = weights.RENAMING
    asked = _read_config(config, folder)
    quantised.check_stored(name, asked, files)
    options |= _quantising(config, asked, files, device)
    if not config.trust_remote_code:
        bounds.check_size(asked, sum(tensor.size for tensor in files.values()), name)
    model, info, notices = _loaded(name, folder, asked, options)
    notices += weights.check_fit(name, model, info, files, method=quantised.method_of(asked))
    if wrapper is not None:
        whose = weights.WRAPPERS[wrapper]
        notices.append(f"{name}: ignored the prefix '{wrapper}.' that {whose} left in the names of weights")
    return model, notices


def _loaded(name: str, folder: Path, asked: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any], list[str]]:
    """The model that transformers loads, its loading report, and notices."""
    if getattr(asked, "is_encoder_decoder", False):
        raise UsageError(f"{name}: an encoder-decoder ({asked.model_type}), not a left-to-right language model")
    method = quantised.method_of(asked)
    attention = getattr(asked, "_attn_implementation", None) or ""
    without = "flash" in attention and not _has_flash(attention)
    if without:
        asked._attn_implementation = None  # let transformers choose for this architecture
        options = {**options, "config": asked}
    try:
        with failures.quiet(), transformers_internals.without_adapters(), failures.explained(name, "cannot be loaded"):
            model, info = transformers_internals.loader_of(asked).from_pretrained(str(folder), **options)
    except UsageError as error:
        if method is None or "custom code" in str(error):
            raise
        package = f"; pip install {PACKAGES[method]}" if method in PACKAGES and "pip install" not in str(error) else ""
        raise UsageError(f"{error} (its weights are quantised by {method}{package})") from None
    used = model.config._attn_implementation
    notice = f"{name}: its config.json asks for {attention}, which is not available here; using {used} instead"
    return model, info, [notice] if without else []


PACKAGES = {
    "gptq": "optimum gptqmodel",
    "awq": "gptqmodel",
    "bitsandbytes": quantised.EXTRA,
    "compressed-tensors": "compressed-tensors",
    "torchao": "torchao",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "aqlm": "'aqlm[gpu,cpu]'",
    "auto-round": "auto-round",
    "vptq": "vptq",
    "eetq": "kernels",
    "higgs": "flute-kernel",
    "spqr": "'spqr_quant[gpu]'",
    "quark": "amd-quark",
}
"""What to install for a quantisation method, if transformers does not say so itself."""


def _quantising(
    config: ModelConfig, asked: Any, files: Mapping[str, weights.Stored], device: torch.device | None
) -> dict[str, Any]:
    """Arguments of transformers to quantise on loading; for weights already quantised this way, where to put them.

    Empty without `bits`.

    Raises:
        UsageError: the weights cannot be quantised.
    """
    import torch

    if config.bits is None:
        return {}
    quantised.check(called(config), asked, config.bits)
    if device is not None and device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    where: dict[str, Any] = {} if device is None else {"device_map": {"": device}}
    if quantised.method_of(asked) is not None:
        return where
    compute = stored_dtype(asked, files) if config.dtype == "auto" else getattr(torch, config.dtype)
    return where | {"quantization_config": quantised.options(config.bits, compute)}


def stored_dtype(asked: Any, files: Mapping[str, weights.Stored]) -> Any:
    """The dtype that transformers loads weights in by default."""
    import torch

    if asked.dtype is not None:
        return asked.dtype
    known = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    return next((known[tensor.dtype] for tensor in files.values() if tensor.dtype in known), torch.float32)


def _has_flash(attention: str) -> bool:
    """Whether an implementation of FlashAttention works here."""
    import importlib.util

    import torch

    package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(attention, "kernels")
    return torch.cuda.is_available() and importlib.util.find_spec(package) is not None


def called(config: ModelConfig) -> str:
    """A model's name in messages."""
    return f"model '{config.source}'" + (f" at revision '{config.revision}'" if config.revision else "")


def load_tokenizer(config: ModelConfig, source: Source | None = None) -> PreTrainedTokenizerFast:
    """The model's tokenizer, with a pad token (the end token if it has none; padding is always masked).

    Raises:
        UsageError: there is no tokenizer, or only a slow one, which gives no character offsets.
    """
    return _tokenizer(config, source or base_source(config))[0]


def _tokenizer(config: ModelConfig, source: Source) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """The tokenizer, and notices."""
    found, notices = tokenizer_files.read_tokenizer(source.config(), called(config), code=config.trust_remote_code)
    if not found.is_fast:
        raise UsageError(f"model '{config.source}': its tokenizer is a slow one; it needs a fast one (tokenizer.json)")
    if found.pad_token_id is None:
        found.pad_token = found.eos_token or found.unk_token
    return found, notices


def architecture(config: ModelConfig, source: Source | None = None) -> Any:
    """The model's transformers configuration; loads no weights.

    Raises:
        UsageError: no such model, or no usable configuration.
        ForgettingError: the Hub could not be reached.
    """
    source = source or sources.find(config.source, config.revision, code=config.trust_remote_code)
    check_whole(source)
    return _read_config(config, source.config())


def _read_config(config: ModelConfig, folder: Path) -> Any:
    """A folder's transformers configuration; requests that no real file makes are refused first."""
    from transformers import AutoConfig

    bounds.check_model(folder / sources.CONFIG, called(config), code=config.trust_remote_code)
    return load_pretrained(AutoConfig.from_pretrained, config, folder, trust_remote_code=config.trust_remote_code)


def max_context(config: ModelConfig, source: Source | None = None) -> int | None:
    """Positions that the model was built for, or None if its config does not say; loads no weights."""
    positions: int | None = getattr(architecture(config, source).get_text_config(), "max_position_embeddings", None)
    return positions


def base_source(config: ModelConfig) -> Source:
    """Find a whole model.

    Raises:
        UsageError: no such folder or Hub id; it is an adapter, or has no config.json.
        ForgettingError: the Hub could not be reached.
    """
    source = sources.find(config.source, config.revision, code=config.trust_remote_code)
    check_whole(source)
    return source


def check_whole(source: Source) -> None:
    """Refuse a source that is not a whole model.

    Raises:
        UsageError: it is an adapter, or has no config.json.
    """
    if source.has(sources.ADAPTER_CONFIG) and not source.has(sources.CONFIG):
        raise UsageError(f"model '{source.name}': an adapter, not a base model; give the model it was made for")
    if not source.has(sources.CONFIG):
        inside = source.models_inside()
        raise UsageError(
            f"model '{source.name}': it contains {', '.join(inside)} but is not a model itself; give one of them, or "
            "a run's checkpoints to `forgetting measure`"
            if inside
            else f"model '{source.name}': not a model: this {source.place} has no config.json"
        )


def load_pretrained(loader: Any, config: ModelConfig, folder: Path, **options: Any) -> Any:
    """Call a transformers loader on a folder, and turn its errors into one line that names the model.

    Raises:
        UsageError: the model, weights or configuration are wrong, or a package is missing.
        ForgettingError: memory is too small.
    """
    with failures.explained(called(config), "cannot be loaded"):
        return loader(str(folder), **options)


def pick_device(name: str) -> torch.device:
    """A device by name; `auto` is the first GPU, or the CPU if there is none.

    Raises:
        UsageError: not a device, or one that this machine lacks.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails on the device "meta", which computes nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"device '{name}': not available here ({reason}); use auto or cpu") from None
    return device


def count_parameters(model: torch.nn.Module, *, trainable: bool) -> int:
    """The number of parameters, counted from the model itself: only trainable ones, or all.

    A parameter shared by two modules (tied embeddings) counts once. Packed weights count as the numbers they represent.
    """
    return sum(quantised.numbers(p) for p in model.parameters() if p.requires_grad or not trainable)

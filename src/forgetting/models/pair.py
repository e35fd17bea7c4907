"""The two models of a comparison, given by name or already loaded, checked to be comparable."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..config.bits import quantised as in_words
from ..config.schema import ModelConfig
from ..errors import UsageError
from . import adapters, attaching, causal, comparable, loading, peft_internals, quantised, sources, weights
from .loading import Base
from .sources import Source
from .tokenizer_files import TOKENIZER, read_tokenizer

Model = str | Path | Source | nn.Module


@dataclass(frozen=True)
class Pair:
    """A base model and the model fine-tuned from it.

    Attributes:
        base: the base model; the same object as `tuned` if that is a PeftModel whose adapters can be disabled.
        tuned: the fine-tuned model.
        tokenizer: the base model's; None for loaded models given without one.
        key: content key of the base model, for the cache; None for a model that was given loaded.
        names: the user's names of base and tuned.
        tuned_tokenizer: the tuned model's own, if it has one.
        notices: what a reader of the numbers should know.
        source: where the tuned model is; None if it was given loaded.
    """

    base: Any
    tuned: Any
    tokenizer: Any
    key: str | None
    names: tuple[str, str]
    tuned_tokenizer: Any = None
    notices: list[str] = field(default_factory=list)
    source: Source | None = None

    @property
    def dtype(self) -> str:
        """The base model's dtype."""
        return quantised.dtype_name(self.base)

    @property
    def tuned_dtype(self) -> str:
        """The tuned model's dtype."""
        return quantised.dtype_name(self.tuned)


def open_pair(
    base: Model | None,
    tuned: Model,
    *,
    tokenizer: Any = None,
    settings: ModelConfig,
    placement: loading.Placement,
) -> Pair:
    """Load models given by name, take loaded ones as they are, and check that they belong together.

    Args:
        base: a folder, Hub id, `miniature`, source, or a loaded model; None for the base of a loaded PeftModel.
        tuned: an adapter or full model: a folder, Hub id, source, or a loaded model.
        tokenizer: the tokenizer, for loaded models.
        settings: revision, dtype, device and bits of models to load; its source is replaced.
        placement: how they are spread over devices.

    Raises:
        UsageError: the models do not belong together, or cannot be loaded.
        ForgettingError: the Hub could not be reached, or memory is too small.
    """
    if isinstance(base, nn.Module) or base is None:
        return _live_pair(base, tuned, tokenizer)
    given = base if isinstance(base, Source) else None
    config = settings.model_copy(update={"source": str(base) if given is None else given.name})
    source = given or loading.base_source(config)
    loading.check_whole(source)
    if isinstance(tuned, nn.Module):
        tuned_model: Any = adapters.unwrapped(tuned)
        causal.check_causal(tuned_model, "the tuned model")
        weights.check_finite(tuned_model.named_parameters(), "the tuned model's")
        loaded = _load_base(config, source, placement)
        names = (source.name, type(tuned_model).__name__)
        notices = [*loaded.notices, *comparable.architecture_notices(loaded.model, tuned_model)]
        notices += _dtype_notices(loaded.model, tuned_model)
        return Pair(loaded.model, tuned_model, tokenizer or loaded.tokenizer, loaded.key, names, None, notices)
    # report errors of the tuned model before loading or downloading the base model
    found = tuned if isinstance(tuned, Source) else sources.find(str(tuned), code=config.trust_remote_code)
    adapter = attaching.adapter_config(found, source)
    if adapter is None:
        loading.check_whole(found)
    loaded = _load_base(config, source, placement)
    tokenizer = tokenizer or loaded.tokenizer
    if adapter is not None:
        return adapter_pair(loaded, tokenizer, adapter, found, config, placement)
    other = settings.model_copy(update={"source": found.name, "revision": None})
    model, notices = loading.load_model(other, found, placement, "the tuned model's")
    notices = [*loaded.notices, *notices, *comparable.architecture_notices(loaded.model, model)]
    notices += _dtype_notices(loaded.model, model)
    names = (source.name, found.name)
    return Pair(loaded.model, model, tokenizer, loaded.key, names, own_tokenizer(found, config), notices, found)


def _load_base(config: ModelConfig, source: Source, placement: loading.Placement) -> Base:
    """The base model, with a notice if it is quantised."""
    loaded = loading.load_base(config, source, placement)
    if not (bits := quantised.bits_of(loaded.model.config)):
        return loaded
    said = f"the base model is {in_words(bits)}, and forgetting is measured against it as quantised"
    return replace(loaded, notices=(*loaded.notices, said))


def _live_pair(base: nn.Module | None, tuned: Model, tokenizer: Any) -> Pair:
    if not isinstance(tuned, nn.Module):
        raise UsageError("a loaded base model needs a loaded tuned model; or give both by name")
    tuned_model: Any = adapters.unwrapped(tuned)
    base_model = None if base is None else adapters.unwrapped(base)
    wraps_base = adapters.is_peft(tuned_model) and base_model is not None and _inside(base_model, tuned_model)
    if base_model is None and not adapters.is_peft(tuned_model):
        raise UsageError("no base model: give it as the first argument, or give a PeftModel as the second")
    weights.check_finite(tuned_model.named_parameters(), "the tuned model's")
    if base_model is not None and not wraps_base:
        weights.check_finite(base_model.named_parameters(), "the base model's")
    _check_live(tuned_model, base_model)
    if base_model is None or wraps_base:
        # PEFT puts its layers into the base model itself; running that would run the tuned model.
        comparable.check_live_adapter(tuned_model)
        return Pair(tuned_model, tuned_model, tokenizer, None, ("its base model", type(tuned_model).__name__))
    notices = [*_base_notices(base_model), *comparable.architecture_notices(base_model, tuned_model)]
    notices += _dtype_notices(base_model, tuned_model)
    return Pair(
        base_model, tuned_model, tokenizer, None, (type(base_model).__name__, type(tuned_model).__name__), None, notices
    )


def _dtype_notices(base: Any, tuned: Any) -> list[str]:
    """A notice if the two models run in different dtypes."""
    ours, theirs = quantised.dtype_name(base), quantised.dtype_name(tuned)
    if ours == theirs:
        return []
    said = f"the base model runs in {ours} and the tuned model in {theirs}, so forgetting includes the rounding"
    # weights stored in fewer bits stay so
    return [f"{said}; load both in one dtype (--dtype)" if "-" not in ours + theirs else said]


def _base_notices(base: Any) -> list[str]:
    """A notice if a loaded base model is a PeftModel; refuses a base model with another model's adapter inside it."""
    if adapters.is_peft(base):
        comparable.check_live_adapter(base, "load the base model without it")
        return ["the base model is a PeftModel: it is measured with its adapters disabled"]
    if peft_internals.acts_in(base):
        raise UsageError(
            "the base model contains an active adapter: PEFT puts its layers into the model that it wraps, so this is "
            "no longer the base model; load the base model again, or give the PeftModel as tuned and None as base"
        )
    return []


def _check_live(tuned: Any, base: Any) -> None:
    """Refuse loaded models that are not left-to-right language models."""
    causal.check_causal(tuned, "the tuned model")
    if base is not None and not _inside(base, tuned):
        causal.check_causal(base, "the base model")


def _inside(base: nn.Module, tuned: Any) -> bool:
    return any(module is base for module in tuned.modules())


def adapter_pair(
    loaded: Base, tokenizer: Any, adapter: Any, source: Source, config: ModelConfig, placement: loading.Placement
) -> Pair:
    """Apply an adapter to a base model loaded for it, after checking that they belong together; changes that model."""
    if loaded.source is None:
        raise AssertionError("a base model loaded by name has a source")
    notices = [*loaded.notices, *comparable.check_made_for(source.name, adapter, loaded.source)]
    notices += quantised.other_base(source.adapter(), loaded.model)
    base: Any = loaded.model
    before = comparable.Fingerprint(base)
    tuned, found = attaching.attach(base, source)
    notices += found
    causal.check_causal(tuned, f"adapter '{source.name}'")
    if before.given_back(tuned) and not getattr(adapter, "layer_replication", None):
        base = tuned
    else:
        notices.append("the adapter changes the base model itself, so the base model is loaded a second time")
        base, _ = loading.load_model(config, loaded.source, placement)
    if adapters.invocations(tuned):
        notices.append("an aLoRA adapter: PEFT applies it after its last invocation in a window")
    return Pair(
        base,
        tuned,
        tokenizer,
        loaded.key,
        (config.source, source.name),
        own_tokenizer(source, config),
        notices,
        source,
    )


def own_tokenizer(source: Source, config: ModelConfig) -> Any:
    """The tokenizer that comes with a tuned model; None if there is none."""
    if not source.has(TOKENIZER):
        return None
    return read_tokenizer(source.config(), f"model '{source.name}'", code=config.trust_remote_code)[0]

"""The two models of a comparison, loaded or live, checked to be comparable."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..config.schema import ModelConfig
from ..errors import UsageError
from . import adapters, comparable, loading, sources
from .loading import Base
from .sources import Source

Model = str | Path | Source | nn.Module


@dataclass(frozen=True)
class Pair:
    """A base model and what was fine-tuned from it.

    Attributes:
        base: the base model; the very same object as `tuned` where that is a PeftModel whose adapters can be disabled.
        tuned: the fine-tuned model.
        tokenizer: the base model's; None for live models given without one.
        key: content key of the base model, for the cache; None for a live one, whose content has no name.
        names: what the user called base and tuned.
        tuned_tokenizer: the tuned model's own, where it has one.
        notices: what a reader of the numbers should know.
    """

    base: Any
    tuned: Any
    tokenizer: Any
    key: str | None
    names: tuple[str, str]
    tuned_tokenizer: Any = None
    notices: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> str:
        """The base model's dtype."""
        return str(next(self.base.parameters()).dtype).removeprefix("torch.")


def open_pair(
    base: Model | None,
    tuned: Model,
    *,
    tokenizer: Any = None,
    settings: ModelConfig,
    placement: loading.Placement,
) -> Pair:
    """Load what is given by name, take what is live, and check that they belong together.

    Args:
        base: a folder, Hub id, `miniature`, where it lies, or a live model; None for the base of a live PeftModel.
        tuned: an adapter or full model, by folder or Hub id, where it lies, or live.
        tokenizer: for live models.
        settings: revision, dtype and device of models that are loaded; its source is replaced.
        placement: how they are spread and quantised.

    Raises:
        UsageError: the models do not belong together, or cannot be loaded.
    """
    if isinstance(base, nn.Module) or base is None:
        return _live_pair(base, tuned, tokenizer)
    given = base if isinstance(base, Source) else None
    config = settings.model_copy(update={"source": str(base) if given is None else given.name})
    source = given or loading.base_source(config)
    loading.check_whole(source)
    if isinstance(tuned, nn.Module):
        loaded = loading.load(config, placement, source)
        return Pair(loaded.model, tuned, tokenizer or loaded.tokenizer, loaded.key, (source.name, type(tuned).__name__))
    # what is wrong with the tuned model is said before the base model is loaded, or downloaded
    found = tuned if isinstance(tuned, Source) else sources.find(str(tuned), code=config.trust_remote_code)
    adapter = adapters.adapter_config(found)
    if adapter is None:
        loading.check_whole(found)
    loaded = loading.load(config, placement, source)
    tokenizer = tokenizer or loaded.tokenizer
    if adapter is not None:
        return _adapter_pair(loaded, tokenizer, adapter, found, config, placement)
    other = settings.model_copy(update={"source": found.name, "revision": None})
    model = loading.load_model(other, placement, found)
    notices = _architecture_notice(loaded.model, model)
    return Pair(loaded.model, model, tokenizer, loaded.key, (source.name, found.name), _own_tokenizer(found), notices)


def _live_pair(base: nn.Module | None, tuned: Model, tokenizer: Any) -> Pair:
    if not isinstance(tuned, nn.Module):
        raise UsageError("a live base model needs a live tuned model; or give both by name")
    tuned_model: Any = adapters.unwrapped(tuned)
    base_model = None if base is None else adapters.unwrapped(base)
    wraps_base = adapters.is_peft(tuned_model) and base_model is not None and _inside(base_model, tuned_model)
    if base_model is None and not adapters.is_peft(tuned_model):
        raise UsageError("no base model: give it as the first argument, or give a PeftModel as the second")
    if base_model is None or wraps_base:
        # PEFT puts its layers into the base model itself: run as it is, that would be the tuned model.
        comparable.check_live_adapter(tuned_model)
        return Pair(tuned_model, tuned_model, tokenizer, None, ("its base model", type(tuned_model).__name__))
    notices = _architecture_notice(base_model, tuned_model)
    return Pair(
        base_model, tuned_model, tokenizer, None, (type(base_model).__name__, type(tuned_model).__name__), None, notices
    )


def _inside(base: nn.Module, tuned: Any) -> bool:
    return any(module is base for module in tuned.modules())


def _adapter_pair(
    loaded: Base, tokenizer: Any, adapter: Any, source: Source, config: ModelConfig, placement: loading.Placement
) -> Pair:
    if loaded.source is None:
        raise AssertionError("a base model loaded by name says where it lies")
    notices = comparable.check_made_for(source.name, adapter, loaded.source)
    base: Any = loaded.model
    before = comparable.weight_sums(base)
    tuned = adapters.attach(base, source)
    if comparable.restores_base(tuned, before):
        base = tuned
    else:
        notices.append("the adapter changes the base model's own weights: the base model is loaded beside it")
        base = loading.load_model(config, placement, loaded.source)
    return Pair(base, tuned, tokenizer, loaded.key, (config.source, source.name), _own_tokenizer(source), notices)


def _own_tokenizer(source: Source) -> Any:
    """The tokenizer that lies with a tuned model; None where none does."""
    from transformers import AutoTokenizer

    if not source.has("tokenizer.json"):
        return None
    try:
        return AutoTokenizer.from_pretrained(str(source.config()))
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"model '{source.name}': its tokenizer cannot be read") from None


def _architecture_notice(base: Any, tuned: Any) -> list[str]:
    one, other = ((m.get_base_model() if adapters.is_peft(m) else m).config.model_type for m in (base, tuned))
    return [f"the models differ in architecture: {one} and {other}"] if one != other else []

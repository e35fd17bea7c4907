"""Models of a chain's steps: finds out what each is before loading anything, then loads each next to the base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config.bits import quantised as in_words
from ..config.schema import ModelConfig
from ..config.steps import BASE, BEFORE, Step
from ..errors import UsageError
from . import attaching, causal, comparable, gguf, loading, pair, quantised, sources
from .gguf import GgufFile
from .loading import Base, Placement
from .pair import Pair
from .sources import Source


@dataclass(frozen=True)
class Recipe:
    """How the model of a step is made.

    Attributes:
        name: the step's name.
        place: the folder or Hub id of a model or adapter, or a GGUF file.
        on: the step that an adapter is applied to; None means the base model, or that it is a whole model.
        dtype: dtype to load it in; None means the base model's.
        bits: bits to quantise to on loading: its weights or, for an adapter, those of the model under it.
        adapter: its PEFT configuration; None for a whole model.
        derived: whether it is an earlier model in another dtype or in fewer bits.
        notices: how this was decided.
    """

    name: str
    place: Source | GgufFile
    on: Recipe | None = None
    dtype: str | None = None
    bits: int | None = None
    adapter: Any = None
    derived: bool = False
    notices: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What the step's model is, in words: `adapter on base`, `model, 4 bits`, `GGUF`."""
        if isinstance(self.place, GgufFile):
            what = "GGUF"
        elif self.adapter is not None:
            what = f"adapter on {BASE if self.on is None else self.on.name}"
        else:
            what = "model"
        how = [f"{self.bits} bits" if self.bits else "", self.dtype or ""]
        return ", ".join(part for part in (what, *how) if part)

    def settings(self, config: ModelConfig) -> ModelConfig:
        """The base model's settings, changed for this model."""
        given = {"source": self.place.name, "revision": None, "bits": self.bits}
        return config.model_copy(update=given if self.dtype is None else given | {"dtype": self.dtype})

    def hashes(self) -> dict[str, str]:
        """The sha256 of its weight files, by name; for an adapter, without the model under it."""
        if isinstance(self.place, GgufFile):
            return sources.file_hashes([self.place.path])
        return self.place.weight_hashes()


def recipes_of(steps: Sequence[Step], config: ModelConfig, base: Source) -> list[Recipe]:
    """Find out what each step is; loads nothing.

    Args:
        steps: the steps as requested.
        config: the base model's settings.
        base: where the base model is.

    Raises:
        UsageError: a step that does not exist or cannot be made; the message names it.
        ForgettingError: the Hub could not be reached.
    """
    found: list[Recipe] = []
    for step in steps:
        try:
            found.append(_recipe(step, found, config, base))
        except UsageError as error:
            raise UsageError(f"step '{step.name}': {error}") from None
    return found


def _recipe(step: Step, earlier: Sequence[Recipe], config: ModelConfig, base: Source) -> Recipe:
    if step.model is None:
        before = earlier[-1] if earlier else Recipe(BASE, base)
        if before.bits is not None and step.bits is not None and before.bits != step.bits:
            raise UsageError(f"bits {step.bits}: the step before is already quantised to {before.bits} bits")
        made = replace(before, name=step.name, derived=True, notices=())
        made = replace(made, dtype=step.dtype or before.dtype, bits=step.bits or before.bits)
        return _checked(made)
    file = gguf.find(step.model, step.file, step.revision)
    if file is not None:
        if step.on is not None:
            raise UsageError(f"on={step.on}: a GGUF file is a whole model, not an adapter")
        return _checked(Recipe(step.name, file, dtype=step.dtype, bits=step.bits))
    source = sources.find(step.model, step.revision, code=config.trust_remote_code)
    adapter = attaching.adapter_config(source, base)
    if adapter is None:
        _check_whole(source)
        if step.on is not None:
            raise UsageError(f"on={step.on}: '{source.name}' is a whole model, not an adapter")
        return _checked(Recipe(step.name, source, dtype=step.dtype, bits=step.bits))
    on, notices = _under(step, adapter, earlier, base)
    made = Recipe(step.name, source, on, step.dtype, step.bits, adapter, notices=tuple(notices))
    return _checked(made)


def _check_whole(source: Source) -> None:
    """Refuse a source that is not a model; for a folder with GGUF files, say how to name one."""
    files = [name for name in source.files() if name.endswith(gguf.SUFFIX)]
    if files and not source.has(sources.CONFIG):
        raise UsageError(f"model '{source.name}': it contains {files[0]}; give {source.name}@file={files[0]}")
    loading.check_whole(source)


def _under(step: Step, adapter: Any, earlier: Sequence[Recipe], base: Source) -> tuple[Recipe | None, list[str]]:
    """The model an adapter is applied to (None is the base), and a notice if the adapter's configuration decided."""
    if step.on == BASE or (step.on == BEFORE and not earlier):
        return None, []
    if step.on is not None:
        return earlier[-1] if step.on == BEFORE else next(one for one in earlier if one.name == step.on), []
    made_for = getattr(adapter, "base_model_name_or_path", None)
    if not made_for or _names(made_for, base):
        return None, []
    for one in reversed(earlier):
        if one.adapter is None and isinstance(one.place, Source) and _names(made_for, one.place):
            return one, [f"applied to '{one.name}', the model that its adapter_config.json names"]
    return None, []


def _names(made_for: str, source: Source) -> bool:
    """Whether an adapter's configuration names a model: by name, by folder, or by a folder with the same content."""
    if made_for == source.name:
        return True
    there = Path(made_for).expanduser()
    if source.local is None or not there.is_dir():
        return False
    if there.resolve() == source.local.resolve():
        return True
    whole = (there / sources.CONFIG).is_file()
    return whole and sources.folder_hash(str(there)) == sources.folder_hash(str(source.local))


def _checked(recipe: Recipe) -> Recipe:
    """Refuse combinations that cannot be quantised or merged."""
    if recipe.bits is None:
        if recipe.on is not None and recipe.on.adapter is not None and recipe.on.bits is not None:
            raise UsageError(
                f"'{recipe.on.name}' is an adapter on weights of {recipe.on.bits} bits; another adapter cannot be "
                "applied on top, since merging rounds it; apply it to the step before that one"
            )
        return recipe
    if isinstance(recipe.place, GgufFile):
        raise UsageError(f"bits {recipe.bits}: the weights of '{recipe.place.name}' are already quantised")
    if recipe.on is not None and recipe.on.adapter is not None:
        raise UsageError(
            f"bits {recipe.bits}: it is on top of the adapter '{recipe.on.name}'; merge both and give the merged model"
        )
    return recipe


@dataclass(frozen=True)
class Opened:
    """The two models of a step.

    Attributes:
        pair: base and tuned model.
        spoiled: whether the adapter changed the base model, so that other steps must load it again.
        notices: notices about this step.
    """

    pair: Pair
    spoiled: bool
    notices: list[str] = field(default_factory=list)


def open_step(recipe: Recipe, loaded: Base, config: ModelConfig, placement: Placement) -> Opened:
    """Load the model of a step and pair it with the base model.

    Args:
        recipe: how it is made.
        loaded: the base model, without an adapter.
        config: its settings.
        placement: how models are spread over devices.

    Raises:
        UsageError: it cannot be loaded, or cannot be compared with the base model.
        ForgettingError: memory is too small.
    """
    plain = recipe.on is None and recipe.bits is None and recipe.dtype is None
    if recipe.adapter is not None and plain and isinstance(recipe.place, Source):
        opened = pair.adapter_pair(loaded, loaded.tokenizer, recipe.adapter, recipe.place, config, placement)
        notices = opened.notices[len(loaded.notices) :]
        return Opened(opened, spoiled=True, notices=[*recipe.notices, *notices])
    model, notices = _model(recipe, loaded, config, placement)
    tokenizer = None
    if isinstance(recipe.place, GgufFile):
        notices += gguf.check_tokenizer(recipe.place, loaded.tokenizer)
    else:
        tokenizer = pair.own_tokenizer(recipe.place, config)
    notices += comparable.architecture_notices(loaded.model, model)
    names = (config.source, recipe.name)
    return Opened(
        Pair(loaded.model, model, loaded.tokenizer, loaded.key, names, tokenizer), False, [*recipe.notices, *notices]
    )


def _model(recipe: Recipe, loaded: Base, config: ModelConfig, placement: Placement) -> tuple[Any, list[str]]:
    """A step's model, loaded separately."""
    settings = recipe.settings(config)
    if isinstance(recipe.place, GgufFile):
        return gguf.load(settings, recipe.place, placement)
    if recipe.adapter is None:
        return loading.load_model(settings, recipe.place, placement, "the tuned model's")
    under, notices = _below(recipe, loaded, config, placement)
    source = loaded.source if recipe.on is None else recipe.on.place
    if isinstance(source, Source) and (recipe.on is None or recipe.on.adapter is None):
        notices += comparable.check_made_for(recipe.place.name, recipe.adapter, source)
    if recipe.bits is not None:
        notices.append(f"the adapter is applied to weights {in_words(recipe.bits)}, not merged into them")
    else:
        notices += quantised.other_base(recipe.place.adapter(), under)
    model, more = attaching.attach(under, recipe.place)
    causal.check_causal(model, f"adapter '{recipe.place.name}'")
    return model, [*notices, *more]


def _below(recipe: Recipe, loaded: Base, config: ModelConfig, placement: Placement) -> tuple[Any, list[str]]:
    """The model under an adapter, loaded only for it."""
    if recipe.on is not None:
        below = replace(recipe.on, dtype=recipe.dtype or recipe.on.dtype, bits=recipe.bits or recipe.on.bits)
        model, notices = _model(below, loaded, config, placement)
        if below.adapter is not None:
            model = model.merge_and_unload()
        return model, notices
    if loaded.source is None:
        raise AssertionError("a base model loaded by name has a source")
    base = Recipe(BASE, loaded.source, dtype=recipe.dtype, bits=recipe.bits)
    settings = base.settings(config).model_copy(update={"revision": config.revision})
    return loading.load_model(settings, loaded.source, placement)

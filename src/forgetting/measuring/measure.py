"""`measure` and `check`: any fine-tuned model against its base, with error bars."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from ..config.arguments import checked, model_of, tokenizer_of
from ..config.schema import ModelConfig, ProbeConfig, validated
from ..data.probes import by_kind
from ..errors import UsageError
from ..models import pair
from ..models.loading import Placement
from ..models.pair import Model
from ..models.sources import Source
from . import passes
from .measurement import CheckResult, Measurement, Settings
from .one_text import default_text, of_text
from .own_answers import own_answers
from .profile import Profile, judged
from .reading import Text, text_source
from .verdict import check_budget


@checked
def measure(
    base: Model | None,
    tuned: Model,
    *,
    text: Text = None,
    tokenizer: Any = None,
    context: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    noise_floor: bool = False,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: Literal["auto"] | None = None,
    bits: Literal[4, 8] | None = None,
    trust_remote_code: bool = False,
    batch_tokens: int | None = None,
    cache_dir: str | os.PathLike[str] | None = "auto",
) -> Measurement:
    """Measure what `tuned` forgot of `base`: every quantity of `quantities.PAIR`, each with its standard error.

    Args:
        base: a folder, Hub id, `miniature`, or a live model; None for the base of a live PeftModel.
        tuned: a PEFT adapter (folder or Hub id), a full model, a live PeftModel, or a live model.
        text: general text: a file, folder, Hub id, TextConfig or Windows; a list of strings, one per document; a
            Dataset or DataFrame; or a ProbeConfig for the base model's own answers to prompts. Default: the
            WikiText-103 test set; for the miniature, its held-out encyclopedia.
        tokenizer: for live models; not needed if `text` is Windows.
        context: tokens per window; default 512, or the base model's maximum if that is less.
        tolerance: measure documents in random order until the standard error of forgetting is at most this, nats/token.
        seed: seed of that order.
        noise_floor: also measure the base model against itself; a difference within this floor is noise.
        revision: Hub revision of the base model.
        dtype, device, trust_remote_code: how models are loaded.
        device_map: `auto` spreads each model over all devices.
        bits: 4 or 8 quantises each model on loading (bitsandbytes).
        batch_tokens: tokens per forward pass; affects only memory and rounding; default 512 on a CPU and 8,192
            elsewhere.
        cache_dir: where base targets, and tokens of large texts, are cached; `auto` is the user's cache, None caches
            nothing.

    Raises:
        UsageError: models that cannot be compared, text that cannot be read, or settings out of range.
        ForgettingError: the Hub cannot be reached, or memory is too small for one window.
    """
    return _measure(base, tuned, text, tokenizer, settings_from(locals()))


@checked
def profile(
    base: Model | None,
    tuned: Model,
    *,
    texts: Mapping[str, Text],
    task_text: Text = None,
    probes: bool = True,
    tokenizer: Any = None,
    context: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    noise_floor: bool = False,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: Literal["auto"] | None = None,
    bits: Literal[4, 8] | None = None,
    trust_remote_code: bool = False,
    batch_tokens: int | None = None,
    cache_dir: str | os.PathLike[str] | None = "auto",
) -> Profile:
    """Measure what `tuned` forgot of `base` on several texts, one row per text. Other arguments are those of `measure`.

    Args:
        base: a folder, Hub id, `miniature`, or a live model; None for the base of a live PeftModel.
        tuned: a PEFT adapter (folder or Hub id), a full model, a live PeftModel, or a live model.
        texts: the texts by name, each as the `text` of `measure`. A ProbeConfig without a kind becomes one text per
            kind of its prompts, if they have kinds.
        task_text: held-out text of the task, measured in addition (`Profile.task`).
        probes: if the base model has a chat template and no text is a ProbeConfig, also measure its own answers to 48
            shipped prompts (`Profile.probes`). This does not change the rows of the texts.

    Raises:
        UsageError: no text, a text that cannot be read, and the errors of `measure`.
    """
    settings = settings_from(locals())
    given, task = _sources(texts), None if task_text is None else text_source(task_text)
    models, settings = opened(base, tuned, tokenizer, settings)
    tasked = None if task is None else _of_task(models, task, settings)
    found = {}
    for name, text in given.items():
        try:
            source = text if texts.get(name, text) is not None else default_text(models.names[0])
            found[name] = of_text(models, source, settings)
        except UsageError as error:
            raise _of_name(name, error) from None
    asked = any(isinstance(text, ProbeConfig) for text in given.values())
    answers = own_answers(models, settings) if probes and not asked else {}
    return Profile(found, tasked, Profile(answers) if answers else None)


def _of_name(name: str, error: UsageError) -> UsageError:
    """The error with the name of its text added, except for `text`, the name that the command gives a single text."""
    return error if name == "text" else UsageError(f"text '{name}': {error}")


def _of_task(models: pair.Pair, task: Any, settings: Settings) -> Measurement:
    """Measure the task's text; done before the other texts, so that errors in it appear early."""
    try:
        return of_text(models, task, settings)
    except UsageError as error:
        raise UsageError(f"task_text (--task-text): {error}") from None


def _sources(texts: Mapping[str, Text]) -> dict[str, Any]:
    """The source of each text, by name; a probe whose prompts have kinds becomes one per kind.

    Raises:
        UsageError: no text, a text that cannot be read, or two texts with the same name.
    """
    if not isinstance(texts, Mapping) or not texts:
        raise UsageError("texts: give at least one, as {'name': source}")
    given: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            source = text_source(text)
            parts = by_kind(str(name), source) if isinstance(source, ProbeConfig) else {str(name): source}
        except UsageError as error:
            raise _of_name(name, error) from None
        if twice := parts.keys() & given.keys():
            raise UsageError(f"texts: two have the name '{min(twice)}'; give each its own")
        given |= parts
    return given


def _measure(base: Any, tuned: Any, text: Text, tokenizer: Any, settings: Settings) -> Measurement:
    given = text_source(text)  # before the models are loaded, so that errors in it appear early
    models, settings = opened(base, tuned, tokenizer, settings)
    return of_text(models, default_text(models.names[0]) if text is None else given, settings)


def opened(base: Any, tuned: Any, tokenizer: Any, settings: Settings) -> tuple[pair.Pair, Settings]:
    """Load the models; returns them, and the settings with `batch_tokens` filled in."""
    base = base if isinstance(base, Source) else model_of("base", base, optional=True)
    tuned = tuned if isinstance(tuned, Source) else model_of("tuned", tuned)
    models = pair.open_pair(
        base,
        tuned,
        tokenizer=tokenizer_of(tokenizer),
        settings=model_config(settings),
        placement=settings.placement,
    )
    return models, replace(settings, batch_tokens=passes.batch_size(models.base, settings.batch_tokens))


@checked
def check(
    base: Model | None,
    tuned: Model,
    *,
    budget: float,
    confidence: float = 0.95,
    text: Text = None,
    task_text: Text = None,
    tokenizer: Any = None,
    context: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    noise_floor: bool = False,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: Literal["auto"] | None = None,
    bits: Literal[4, 8] | None = None,
    trust_remote_code: bool = False,
    batch_tokens: int | None = None,
    cache_dir: str | os.PathLike[str] | None = "auto",
) -> CheckResult:
    """Measure the excess forgetting and judge it against a budget. Other arguments are those of `measure`.

    Args:
        base: a folder, Hub id, `miniature`, or a live model; None for the base of a live PeftModel.
        tuned: a PEFT adapter (folder or Hub id), a full model, a live PeftModel, or a live model.
        budget: allowed excess forgetting, nats/token.
        confidence: of each one-sided bound.
        text: general text, as in `measure`.
        task_text: held-out text of the task, to also judge whether the tuned model predicts it better than the base.

    Returns:
        The verdict, `within`, `over` or `undecided`, the measurement that it is based on, and the verdict on the task.

    Raises:
        UsageError: a budget or confidence out of range, and the errors of `measure`.
    """
    settings = settings_from(locals())
    check_budget(budget, confidence)  # before the models are loaded
    given, task = text_source(text), None if task_text is None else text_source(task_text)
    models, settings = opened(base, tuned, tokenizer, settings)
    tasked = None if task is None else _of_task(models, task, settings)
    found = of_text(models, default_text(models.names[0]) if text is None else given, settings)
    return judged(found, tasked, budget, confidence)


def settings_from(arguments: Mapping[str, Any]) -> Settings:
    """Settings from the arguments of `measure`, or of a function that shares some of them.

    Args:
        arguments: `locals()` at the start of the function; arguments that are not settings are ignored.

    Raises:
        UsageError: a value out of range, or two that exclude each other.
    """
    names = {field.name for field in fields(Settings)} - {"placement", "cache_dir"}
    device_map, cache_dir = arguments["device_map"], arguments["cache_dir"]
    given = {name: arguments[name] for name in names & arguments.keys()}
    chosen = Settings(placement=Placement(spread=device_map is not None), **given)
    if cache_dir != "auto":
        chosen = replace(chosen, cache_dir=None if cache_dir is None else Path(cache_dir))
    if device_map is not None and chosen.device != "auto":
        raise UsageError("give device or device_map, not both")
    if chosen.tolerance is not None and not chosen.tolerance > 0:
        raise UsageError(f"tolerance {chosen.tolerance}: must be a standard error above 0, for example 0.005")
    if chosen.seed < 0:
        raise UsageError(f"seed {chosen.seed}: must be a whole number from 0 up")
    if chosen.context is not None and chosen.context < 2:
        raise UsageError(f"context {chosen.context}: must be at least 2")
    if chosen.batch_tokens is not None and chosen.batch_tokens < 1:
        raise UsageError(f"batch_tokens {chosen.batch_tokens}: must be at least 1")
    return chosen


def model_config(settings: Settings) -> ModelConfig:
    """How models are loaded, as a ModelConfig whose source is still to be filled in."""
    names = ("revision", "dtype", "device", "trust_remote_code", "bits")
    return validated(ModelConfig, {"source": "-", **{name: getattr(settings, name) for name in names}}, "measure")

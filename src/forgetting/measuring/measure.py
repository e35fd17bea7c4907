"""`measure` and `check`: any fine-tuned model against its base, with error bars."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..config.arguments import checked, model_of, tokenizer_of
from ..config.schema import ModelConfig, ProbeConfig, TextConfig, validated
from ..data.probes import by_kind, read_probe
from ..data.untokenized import Untokenized
from ..data.windows import Windows
from ..errors import ForgettingError, UsageError
from ..models import comparable, pair
from ..models.loading import Placement
from ..models.pair import Model
from ..models.sources import Source
from . import passes, quantities
from .base_targets import base_side
from .comparison import compare
from .estimate import Mean, clustered_mean
from .measurement import CheckResult, Measurement, Settings
from .noise import NoiseFloor, noise_floor
from .probes import probe_windows
from .profile import Profile
from .quantities import PAIR
from .reading import Text, compared, read_to_sample, read_windows, text_source, window_length
from .sampling import Sampled, until
from .verdict import check_budget, judge

MINIATURE_TEXT = "miniature:encyclopedia-heldout"
ROUNDING = 1e-5
"""nats: by less than this, no token tells two models apart."""


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
    """Measure what `tuned` forgot of `base`: every quantity of the table, each with its standard error.

    Args:
        base: a folder, Hub id, `miniature`, or a live model; None for the base of a live PeftModel.
        tuned: a PEFT adapter (folder or Hub id), a full model, a live PeftModel, or a live model.
        text: general text: a file, folder, Hub id, TextConfig, Windows; a list of texts, one a document; a Dataset
            or DataFrame; or a ProbeConfig: the base model's own answers to prompts. Default: the WikiText-103 test set;
            for the miniature its held-out encyclopedia.
        tokenizer: for live models, unless text is Windows.
        context: tokens a window; default 512, or what the base model was built for where that is less.
        tolerance: measure documents in random order until the standard error is at most this, nats/token.
        seed: of that order.
        noise_floor: also measure the base model against itself: a smaller difference is noise.
        revision, dtype, device, trust_remote_code: of models that are loaded.
        device_map, bits: `auto` spreads each model over all devices; 4 or 8 quantises each on loading (bitsandbytes).
        batch_tokens: tokens a forward pass, memory and rounding only; default 512 on a CPU and 8,192 elsewhere.
        cache_dir: where base targets, and tokens of large texts, are cached; `auto` is the user's, None caches none.

    Raises:
        UsageError: models that cannot be compared, text that cannot be read, settings that make no sense.
        ForgettingError: the Hub cannot be reached, or memory is too small for one window.
    """
    how: dict[str, Any] = {"context": context, "tolerance": tolerance, "seed": seed, "noise_floor": noise_floor}
    how |= {"revision": revision, "dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    how |= {"bits": bits, "batch_tokens": batch_tokens, "cache_dir": cache_dir}
    return _measure(base, tuned, text, tokenizer, settings_of(device_map, **how))


@checked
def profile(
    base: Model | None,
    tuned: Model,
    *,
    texts: Mapping[str, Text],
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
) -> Profile:
    """Measure what `tuned` forgot of `base` on several texts: one row a text. Other arguments are those of `measure`.

    Args:
        base: a folder, Hub id, `miniature`, or a live model; None for the base of a live PeftModel.
        tuned: a PEFT adapter (folder or Hub id), a full model, a live PeftModel, or a live model.
        texts: each as the `text` of `measure`, by a name of your own. A ProbeConfig without a kind is a text for each
            kind of its prompts, where these have kinds.
        task_text: held-out text of the task, measured beside them.

    Raises:
        UsageError: no text, a text that cannot be read, and what `measure` raises.
    """
    given, task = _sources(texts), None if task_text is None else text_source(task_text)
    how: dict[str, Any] = {"context": context, "tolerance": tolerance, "seed": seed, "noise_floor": noise_floor}
    how |= {"revision": revision, "dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    how |= {"bits": bits, "batch_tokens": batch_tokens, "cache_dir": cache_dir}
    models, settings = opened(base, tuned, tokenizer, settings_of(device_map, **how))
    tasked = None if task is None else _of_task(models, task, settings)
    found = {}
    for name, text in given.items():
        try:
            source = text if texts.get(name, text) is not None else default_text(models.names[0])
            found[name] = of_text(models, source, settings)
        except UsageError as error:
            raise UsageError(f"text '{name}': {error}") from None
    return Profile(found, tasked)


def _of_task(models: pair.Pair, task: Any, settings: Settings) -> Measurement:
    """The task's text, measured first: what is wrong with it is said before the others take their time."""
    try:
        return of_text(models, task, settings)
    except UsageError as error:
        raise UsageError(f"task_text (--task-text): {error}") from None


def _sources(texts: Mapping[str, Text]) -> dict[str, Any]:
    """Where each text comes from, by its name; of a probe's prompts of several kinds one each.

    Raises:
        UsageError: no text, one that cannot be read, or two of one name.
    """
    if not isinstance(texts, Mapping) or not texts:
        raise UsageError("texts: give at least one, as {'name': source}")
    given: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            source = text_source(text)
            parts = by_kind(str(name), source) if isinstance(source, ProbeConfig) else {str(name): source}
        except UsageError as error:
            raise UsageError(f"text '{name}': {error}") from None
        if twice := parts.keys() & given.keys():
            raise UsageError(f"texts: two have the name '{min(twice)}'; give each its own")
        given |= parts
    return given


def _measure(base: Any, tuned: Any, text: Text, tokenizer: Any, settings: Settings) -> Measurement:
    given = text_source(text)  # what is wrong with it is said before models are loaded
    models, settings = opened(base, tuned, tokenizer, settings)
    return of_text(models, default_text(models.names[0]) if text is None else given, settings)


def opened(base: Any, tuned: Any, tokenizer: Any, settings: Settings) -> tuple[pair.Pair, Settings]:
    """The models, and the settings with the tokens of a forward pass."""
    base = model_of("base", base, optional=True)
    tuned = tuned if isinstance(tuned, Source) else model_of("tuned", tuned)
    models = pair.open_pair(
        base,
        tuned,
        tokenizer=tokenizer_of(tokenizer),
        settings=model_config(settings),
        placement=settings.placement,
    )
    return models, replace(settings, batch_tokens=passes.batch_size(models.base, settings.batch_tokens))


def default_text(base: str) -> Any:
    """The text that is measured on where none is given, by the base model's name."""
    return TextConfig(source=MINIATURE_TEXT) if base == "miniature" else text_source(None)


def of_text(models: pair.Pair, given: Any, settings: Settings) -> Measurement:
    """The measurement of one text, with models that are open."""
    size = settings.batch_tokens
    assert size is not None
    windows, name, context, told = _read(models, given, settings)
    rows, notices = comparable.shared_rows(models.base, models.tuned, windows.largest)
    began = time.perf_counter()
    sampled = until(
        windows,
        lambda part: token_values(models, part, settings.cache_dir, size, rows),
        "forgetting",
        settings.tolerance,
        settings.seed,
    )
    noise = None
    if settings.noise_floor:
        noise = noise_floor(models.base, windows, batch_tokens=size, seed=settings.seed, rows=rows)
    unchanged = unchanged_notice(sampled)
    notices = [*models.notices, *told, *notices, *unchanged, *_sampling_notices(sampled, settings)]
    notices += [] if unchanged else _noise_notices(sampled, noise)
    return measurement_of(models, name, context, settings, sampled, noise, tuple(notices), began, windows)


def _read(
    models: pair.Pair, given: Any, settings: Settings
) -> tuple[Windows | Untokenized, str, int | None, list[str]]:
    """A text as windows, its name, the context, and notices; of a probe the base model's answers."""
    both = (models.base, models.tuned)
    if not isinstance(given, ProbeConfig):
        read = read_windows if settings.tolerance is None else read_to_sample
        how = (models.tokenizer, both, settings.context, models.tuned_tokenizer, settings.cache_dir)
        return read(given, *how)
    length = window_length(both, settings.context)
    kept: dict[str, Any] = {"key": models.key, "cache_dir": settings.cache_dir}
    windows = probe_windows(models.base, models.tokenizer, given, context=length, **kept)
    prompts = [prompt.text for prompt in read_probe(given)[:3]]
    told = [*compared(models.tokenizer, models.tuned_tokenizer, prompts), *windows.notices]
    return windows, given.source, length, told


def measurement_of(
    models: pair.Pair,
    text: str,
    context: int | None,
    settings: Settings,
    sampled: Sampled,
    noise: NoiseFloor | None,
    notices: tuple[str, ...],
    began: float,
    all_text: Windows | Untokenized,
) -> Measurement:
    """What `measure` returns, from what it found."""
    return Measurement(
        base=models.names[0],
        tuned=models.names[1],
        text=text,
        means=_means(sampled),
        documents_in_text=all_text.n_documents,
        context=context,
        settings=settings,
        dtype=models.dtype,
        seconds=time.perf_counter() - began,
        noise=noise,
        notices=notices,
        windows=sampled.windows,
        change=sampled.values["forgetting"],
        argmax=sampled.values["argmax"],
        tokenizer=models.tokenizer,
        sha256={} if models.source is None else models.source.weight_hashes(),
        gain=_gain(sampled),
    )


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
    """Measure, and judge the excess forgetting against a budget. Other arguments are those of `measure`.

    Args:
        base: a folder, Hub id, `miniature`, or a live model; None for the base of a live PeftModel.
        tuned: a PEFT adapter (folder or Hub id), a full model, a live PeftModel, or a live model.
        budget: excess forgetting that is allowed, nats/token.
        confidence: of each one-sided bound.
        text: general text, as of `measure`.
        task_text: held-out text of the task: also judge whether the tuned model predicts it better than the base.

    Returns:
        The verdict, `within`, `over` or `undecided`, with the measurement that it rests on, and the task's.

    Raises:
        UsageError: a budget or confidence that makes no sense, and what `measure` raises.
    """
    check_budget(budget, confidence)  # before the models are loaded
    how: dict[str, Any] = {"context": context, "tolerance": tolerance, "seed": seed, "noise_floor": noise_floor}
    how |= {"revision": revision, "dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    how |= {"bits": bits, "batch_tokens": batch_tokens, "cache_dir": cache_dir}
    given, task = text_source(text), None if task_text is None else text_source(task_text)
    models, settings = opened(base, tuned, tokenizer, settings_of(device_map, **how))
    improved = None if task is None else _of_task(models, task, settings).improvement(confidence, of=2)
    found = of_text(models, default_text(models.names[0]) if text is None else given, settings)
    verdict = judge(found.forgetting, budget, confidence, of=1 if task is None else 2)
    return CheckResult(**vars(verdict), measurement=found, task=improved)


def settings_of(device_map: str | None, *, cache_dir: Any, **fields: Any) -> Settings:
    """Settings from arguments.

    Raises:
        UsageError: one that makes no sense, or two that exclude each other.
    """
    chosen = Settings(placement=Placement(spread=device_map is not None), **fields)
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
    """The settings of models that are loaded; the source is to be filled in."""
    names = ("revision", "dtype", "device", "trust_remote_code", "bits")
    return validated(ModelConfig, {"source": "-", **{name: getattr(settings, name) for name in names}}, "measure")


def token_values(
    models: pair.Pair, windows: Windows, cache_dir: Path | None, size: int, rows: int | None
) -> dict[str, NDArray[Any]]:
    """The [N] values of each of PAIR, and the base's top tokens."""
    targets, expected = base_side(
        models.base,
        windows,
        key=models.key or "live",
        cache_dir=None if models.key is None else cache_dir,
        batch_tokens=size,
        rows=rows,
        with_rows=True,
    )
    _check_finite("base", models.names[0], targets.log_prob)
    found = compare(models.base, models.tuned, windows, targets, expected, batch_tokens=size, rows=rows)
    _check_finite("tuned", models.names[1], found.target_nll)
    return quantities.values(PAIR, found.per_token(targets)) | {"argmax": np.asarray(targets.argmax)}


def _check_finite(role: str, name: str, values: NDArray[Any]) -> None:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ForgettingError(
            f"the {role} model '{name}' gives no finite loss at {bad} of {len(values)} tokens: its numbers "
            "overflow (a run that diverged?); try dtype float32 (--dtype float32)"
        )


def unchanged_notice(sampled: Sampled) -> list[str]:
    """A notice where no token tells the two models apart."""
    values = sampled.values
    moved = np.abs([values["forgetting"], values["kl"], values["data_loss_tuned"] - values["data_loss_base"]])
    if moved.max(initial=0.0) > ROUNDING:
        return []
    return [
        "the tuned model gives the base model's numbers at every token: its weights change nothing here (an adapter "
        "that is all zero, or that does not act on this text?)"
    ]


def _noise_notices(sampled: Sampled, noise: NoiseFloor | None) -> list[str]:
    """A notice where the forgetting measured is no more than rounding gives."""
    floor = None if noise is None or noise.dtype is None else noise.dtype["forgetting"]
    value = float(np.mean(sampled.values["forgetting"], dtype=np.float64))
    if noise is None or floor is None or not floor.holds(value):
        return []
    return [
        f"the forgetting measured, {value:.1e}, is within the noise floor: the base model itself in "
        f"{noise.other_dtype} gives {floor.low:.1e} to {floor.high:.1e}"
    ]


def _sampling_notices(sampled: Sampled, settings: Settings) -> list[str]:
    if settings.tolerance is None or not sampled.complete:
        return []
    mean = clustered_mean(sampled.values["forgetting"], sampled.windows.token_documents())
    if mean.se <= settings.tolerance:
        return []
    return [f"all of the text was measured and the standard error is still above {settings.tolerance:g}: {mean.se:.4g}"]


def _gain(sampled: Sampled) -> Mean:
    """The ground-truth loss that the tuned model has less than the base model, paired token by token."""
    before, after = (np.asarray(sampled.values[f"data_loss_{which}"], np.float64) for which in ("base", "tuned"))
    return clustered_mean(before - after, sampled.windows.token_documents())


def _means(sampled: Sampled) -> dict[str, Mean]:
    values = {quantity.name: sampled.values[quantity.name] for quantity in PAIR}
    return quantities.means(values, sampled.windows.token_documents())

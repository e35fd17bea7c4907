"""Measures loaded models on one text: its windows, the values of both models at each token, and notices."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.schema import ProbeConfig, TextConfig
from ..data.probes import read_probe
from ..data.untokenized import Untokenized
from ..data.windows import Windows
from ..errors import ForgettingError
from ..models import comparable, pair
from . import quantities
from .base_targets import base_side
from .comparison import compare
from .estimate import Mean, clustered_mean
from .measurement import Measurement, Settings
from .noise import NoiseFloor, noise_floor
from .probes import probe_windows
from .quantities import PAIR
from .reading import compared, read_to_sample, read_windows, text_source, window_length
from .sampling import Sampled, until

MINIATURE_TEXT = "miniature:encyclopedia-heldout"
ROUNDING = 1e-5
"""nats: two models whose values differ by at most this at every token count as equal."""


def default_text(base: str) -> Any:
    """The text to measure on if none is given, by the base model's name."""
    return TextConfig(source=MINIATURE_TEXT) if base == "miniature" else text_source(None)


def of_text(models: pair.Pair, given: Any, settings: Settings) -> Measurement:
    """Measure loaded models on one text.

    Args:
        models: the loaded models.
        given: where the text comes from, as from `text_source`.
        settings: how to measure; `batch_tokens` must be set.
    """
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
    """A text as windows (for a probe: the base model's answers), its name, the context, and notices."""
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
    """The result of `measure` from the measured values.

    Args:
        models: the loaded models.
        text: the text's name.
        context: tokens per window; None if windows were given.
        settings: how it was measured.
        sampled: the measured windows and values.
        noise: the noise floor, if measured.
        notices: for the reader.
        began: `time.perf_counter()` when measuring began.
        all_text: the whole text, of which `sampled` may be a part.
    """
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


def token_values(
    models: pair.Pair, windows: Windows, cache_dir: Path | None, size: int, rows: int | None
) -> dict[str, NDArray[Any]]:
    """The [N] values of each quantity of PAIR, and `argmax`, the base model's top tokens.

    Args:
        models: the loaded models.
        windows: N predicted positions.
        cache_dir: where base targets are cached; None caches nothing.
        size: tokens per forward pass.
        rows: number of rows of the vocabulary that are compared; None means all.

    Raises:
        ForgettingError: a model gives a loss that is not finite.
    """
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
    """A notice if both models give the same numbers at every token."""
    values = sampled.values
    moved = np.abs([values["forgetting"], values["kl"], values["data_loss_tuned"] - values["data_loss_base"]])
    if moved.max(initial=0.0) > ROUNDING:
        return []
    return [
        "the tuned model gives the base model's numbers at every token: its weights change nothing here (an adapter "
        "that is all zero, or that does not act on this text?)"
    ]


def _noise_notices(sampled: Sampled, noise: NoiseFloor | None) -> list[str]:
    """A notice if the measured forgetting is within the noise floor, so may be rounding alone."""
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
    """Ground-truth loss of the base model minus that of the tuned model, paired token by token."""
    before, after = (np.asarray(sampled.values[f"data_loss_{which}"], np.float64) for which in ("base", "tuned"))
    return clustered_mean(before - after, sampled.windows.token_documents())


def _means(sampled: Sampled) -> dict[str, Mean]:
    values = {quantity.name: sampled.values[quantity.name] for quantity in PAIR}
    return quantities.means(values, sampled.windows.token_documents())

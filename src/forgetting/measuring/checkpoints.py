"""`measure_checkpoints`: the checkpoints of a run, all on the same tokens against the same base model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from ..config.arguments import checked, path_of
from ..errors import ForgettingError, UsageError
from ..models import checkpoints, loading
from ..models.checkpoints import Checkpoint
from ..models.sources import Source
from .checkpoint_curve import CheckpointCurve, CheckpointRow
from .estimate import clustered_mean
from .measure import model_config, opened, settings_from
from .measurement import Measurement, Settings
from .one_text import ROUNDING, default_text, of_text
from .reading import Text, text_source

ONE = "a folder or a Hub id"


@checked
def measure_checkpoints(
    base: str | os.PathLike[str],
    checkpoints: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    text: Text = None,
    context: int | None = None,
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
    each: Callable[[CheckpointCurve], None] | None = None,
) -> CheckpointCurve:
    """Measure the checkpoints of one run as `measure` does, and how each differs from the one before.

    Args:
        base: a folder, Hub id, or `miniature`.
        checkpoints: PEFT adapters or full models (folders or Hub ids), in any order, or the folder in which a trainer
            wrote `checkpoint-N`. A checkpoint's step is the one in its trainer_state.json, or else the number at the
            end of its name.
        text: general text, as in `measure`; all of it is measured.
        noise_floor: also measure the base model against itself, once.
        context, seed, revision, dtype, device, device_map, bits, trust_remote_code, batch_tokens, cache_dir: as in
            `measure`. The base model's side is computed once; if cache_dir is None, it is kept in a temporary folder.
        each: called after each checkpoint with the curve so far.

    Raises:
        UsageError: a checkpoint without a step, two with the same step, and the errors of `measure`; the message names
            the checkpoint.
        ForgettingError: the Hub cannot be reached, or memory is too small.
    """
    settings = settings_from(locals())
    given = None if text is None else text_source(text)
    config = model_config(settings).model_copy(update={"source": path_of("base", base, f"{ONE}, `miniature`")})
    source = loading.base_source(config)
    wanted = _found(checkpoints, source, settings)
    with _cached(settings) as settings:
        return _through(wanted, source, default_text(config.source) if given is None else given, settings, each)


def _found(given: Any, base: Source, settings: Settings) -> list[Checkpoint]:
    several = [given] if isinstance(given, str | os.PathLike) else given
    names = [path_of("checkpoints", one, ONE) for one in several]
    return checkpoints.find(names, base, code=settings.trust_remote_code)


@contextmanager
def _cached(settings: Settings) -> Iterator[Settings]:
    """Settings with a cache, so that the base model's side is computed once."""
    if settings.cache_dir is not None:
        yield settings
        return
    with TemporaryDirectory(prefix="forgetting-", ignore_cleanup_errors=True) as folder:
        yield replace(settings, cache_dir=Path(folder))


def _through(
    wanted: Sequence[Checkpoint],
    base: Source,
    text: Any,
    settings: Settings,
    each: Callable[[CheckpointCurve], None] | None,
) -> CheckpointCurve:
    """Measure the checkpoints in order."""
    curve = CheckpointCurve((), tuple(one.step for one in wanted))
    for place, one in enumerate(wanted):
        with _of(one, "loading"):
            models, fitted = opened(base, one.source, None, settings)
        with _of(one, "measuring" if place else ""):
            found = of_text(models, text, fitted)
            curve = _longer(curve, one, found)
        del models
        settings = replace(settings, context=found.context or settings.context, noise_floor=False)
        if each is not None:
            each(curve)
    return curve


@contextmanager
def _of(one: Checkpoint, doing: str) -> Iterator[None]:
    """Add the checkpoint's name to an error, unless `doing` is empty: then the error is about the text of all."""
    try:
        yield
    except ForgettingError as error:
        first, *rest = map(str, error.args or ("",))
        if not doing or one.source.name in first:
            raise
        raise type(error)(f"checkpoint '{one.source.name}' (step {one.step}): {first}", *rest) from None


def _longer(curve: CheckpointCurve, one: Checkpoint, found: Measurement) -> CheckpointCurve:
    """The curve with one more row.

    Raises:
        UsageError: the base model's numbers differ from those measured with the earlier checkpoints.
    """
    if not curve.rows:
        return replace(curve, rows=(CheckpointRow(one.step, found, None),))
    first, before = curve.rows[0].measurement, curve.rows[-1].measurement
    floors = [m.means["forgetting_floor"].value for m in (first, found)]
    if len(found.change) != len(first.change) or abs(floors[1] - floors[0]) > ROUNDING:
        raise UsageError(
            "compared with it, the base model gives other numbers than with the checkpoints before (a vocabulary of "
            "another size?), so they cannot be compared token by token; measure it separately"
        )
    difference = np.asarray(found.change, np.float64) - np.asarray(before.change, np.float64)
    change = clustered_mean(difference, first.windows.token_documents())
    shared = replace(found, windows=first.windows, argmax=first.argmax)
    return replace(curve, rows=(*curve.rows, CheckpointRow(one.step, shared, change)))

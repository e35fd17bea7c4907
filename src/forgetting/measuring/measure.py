"""The instrument: any fine-tuned model against its base, with error bars. `measure` and `check`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.schema import ModelConfig, validated
from ..data.windows import Windows
from ..errors import ForgettingError, UsageError
from ..models import comparable, pair
from ..models.loading import Placement
from . import passes, quantities
from .base_targets import base_side
from .comparison import compare
from .estimate import Mean, clustered_mean
from .noise import NoiseFloor, noise_floor
from .quantities import PAIR
from .reading import Text, read_windows
from .sampling import Sampled, until
from .verdict import Verdict, judge

MINIATURE_TEXT = "miniature:encyclopedia-heldout"


@dataclass(frozen=True)
class Settings:
    """How to measure. Defaults give the paper's measurement.

    Attributes:
        context: tokens a window; None is 512, or what the base model was built for where that is less.
        tolerance: stop when the standard error of the excess forgetting is at most this, nats/token; None measures
            all of the text.
        seed: of the order of documents under a tolerance.
        noise_floor: also measure the base model against itself.
        revision: Hub revision of the base model.
        dtype: `auto` (as stored), float32, bfloat16, float16.
        device: `auto`, cpu, cuda, ...
        placement: spread over devices; quantised.
        trust_remote_code: run Python code shipped with the models.
        batch_tokens: tokens a forward pass: memory, and rounding, only; None is 512 on a CPU and 8,192 elsewhere.
        cache_dir: where base targets are cached; None caches nothing.
    """

    context: int | None = None
    tolerance: float | None = None
    seed: int = 0
    noise_floor: bool = False
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    placement: Placement = field(default_factory=Placement)
    trust_remote_code: bool = False
    batch_tokens: int | None = None
    cache_dir: Path | None = field(default_factory=lambda: default_cache_dir())


@dataclass(frozen=True)
class Measurement:
    """What one comparison gave.

    Attributes:
        base, tuned, text: what was compared, on what.
        means: each of `quantities.PAIR` by name, with its clustered standard error.
        documents_in_text: documents that the text has; a tolerance may measure fewer.
        context: tokens a window; None where windows were given.
        settings: how it was measured.
        dtype: of the base model.
        seconds: from loaded models to numbers.
        noise: the noise floor, where it was asked for.
        notices: what a reader of the numbers should know.
        windows: the windows measured.
        change: [N] excess forgetting of each predicted token.
        argmax: [N] the base model's top tokens.
        tokenizer: for showing tokens; may be None.
    """

    base: str
    tuned: str
    text: str
    means: dict[str, Mean]
    documents_in_text: int
    context: int | None
    settings: Settings
    dtype: str
    seconds: float
    noise: NoiseFloor | None
    notices: tuple[str, ...]
    windows: Windows = field(repr=False)
    change: NDArray[np.float32] = field(repr=False)
    argmax: NDArray[np.int32] = field(repr=False)
    tokenizer: Any = field(repr=False, default=None)

    @property
    def forgetting(self) -> Mean:
        """Excess forgetting, nats/token."""
        return self.means["forgetting"]

    def row(self) -> dict[str, Any]:
        """One flat object under DESIGN.md's column names; a standard error that is unknown is None."""
        row: dict[str, Any] = {"base": self.base, "tuned": self.tuned, "text": self.text}
        row |= quantities.row(self.means)
        row |= {
            "text_tokens": self.forgetting.n_tokens,
            "text_documents": self.forgetting.n_documents,
            "documents_in_text": self.documents_in_text,
            "context": self.context,
            "dtype": self.dtype,
            "tolerance": self.settings.tolerance,
            "seed": self.settings.seed,
            "batch_tokens": self.settings.batch_tokens,
            "measure_seconds": round(self.seconds, 3),
            "notices": list(self.notices),
        }
        if self.settings.trust_remote_code:
            row["trust_remote_code"] = True  # code of the models was run
        if self.noise is not None:
            row |= {"noise_floor_batch": self.noise.batch, "noise_floor_dtype": self.noise.dtype}
            row["noise_floor_other_dtype"] = self.noise.other_dtype
        return row


def measure(
    base: pair.Model | None,
    tuned: pair.Model,
    *,
    text: Text = None,
    tokenizer: Any = None,
    settings: Settings | None = None,
    **options: Any,
) -> Measurement:
    """Measure what `tuned` forgot of `base`: every quantity of the table, each with its standard error.

    Args:
        base: a folder, Hub id, `miniature`, or a live model; None for the base of a live PeftModel.
        tuned: a PEFT adapter (folder or Hub id), a full model, a live PeftModel, or a live model.
        text: general text: a .txt, .jsonl or .parquet file, Hub id, TextConfig, or Windows. Default: the WikiText-103
            test set; for the miniature its held-out encyclopedia.
        tokenizer: for live models, unless text is Windows.
        settings: how to measure; or its fields as keywords, for example `tolerance=0.005`.

    Raises:
        UsageError: models that cannot be compared, text that cannot be read, settings that make no sense.
        ForgettingError: the Hub cannot be reached, or memory is too small for one window.

    Examples:
        >>> import forgetting                                                       # doctest: +SKIP
        >>> forgetting.measure("base-model", "my-adapter", text="general.txt").forgetting   # doctest: +SKIP
        Mean(value=0.1834, se=0.0061, n_tokens=284012, n_documents=60)
    """
    chosen = _settings(settings, options)
    models = pair.open_pair(
        base,
        tuned,
        tokenizer=tokenizer,
        settings=_model_config(chosen),
        placement=chosen.placement,
    )
    size = passes.batch_size(models.base, chosen.batch_tokens)
    chosen = replace(chosen, batch_tokens=size)
    if text is None and models.names[0] == "miniature":
        text = MINIATURE_TEXT
    windows, name, context, read = read_windows(
        text, models.tokenizer, models.base, chosen.context, models.tuned_tokenizer
    )
    rows, notices = comparable.shared_rows(models.base, models.tuned, windows)
    began = time.perf_counter()
    sampled = until(
        windows,
        lambda part: _values(models, part, chosen.cache_dir, size, rows),
        "forgetting",
        chosen.tolerance,
        chosen.seed,
    )
    noise = None
    if chosen.noise_floor:
        noise = noise_floor(models.base, windows, batch_tokens=size, seed=chosen.seed, rows=rows)
    notices = [*models.notices, *read, *notices, *_sampling_notices(sampled, chosen)]
    return _measurement(models, name, context, chosen, sampled, noise, tuple(notices), began, windows)


def _measurement(
    models: pair.Pair,
    text: str,
    context: int | None,
    settings: Settings,
    sampled: Sampled,
    noise: NoiseFloor | None,
    notices: tuple[str, ...],
    began: float,
    windows: Windows,
) -> Measurement:
    """What `measure` returns, from what it found."""
    return Measurement(
        base=models.names[0],
        tuned=models.names[1],
        text=text,
        means=_means(sampled),
        documents_in_text=len(np.unique(windows.token_documents())),
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
    )


def check(
    base: pair.Model | None,
    tuned: pair.Model,
    *,
    budget: float,
    confidence: float = 0.95,
    text: Text = None,
    tokenizer: Any = None,
    settings: Settings | None = None,
    **options: Any,
) -> tuple[Verdict, Measurement]:
    """Measure, and judge the excess forgetting against a budget. Arguments as for `measure`.

    Args:
        budget: excess forgetting that is allowed, nats/token.
        confidence: of each one-sided bound.

    Returns:
        The verdict and the measurement that it rests on.
    """
    judge(Mean(0.0, 0.0, 1, 2), budget, confidence)  # refuse nonsense before the models are loaded
    result = measure(base, tuned, text=text, tokenizer=tokenizer, settings=settings, **options)
    return judge(result.forgetting, budget, confidence), result


def default_cache_dir() -> Path:
    """`$FORGETTING_CACHE`, else `forgetting` in the user's cache directory."""
    if given := os.environ.get("FORGETTING_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forgetting"


def _settings(settings: Settings | None, options: dict[str, Any]) -> Settings:
    from ..errors import did_you_mean

    names = list(Settings.__dataclass_fields__)
    for name in options:
        if name not in names:
            raise UsageError(f"measure: no setting '{name}'; {did_you_mean(name, names)}")
    chosen = replace(settings or Settings(), **options)
    if chosen.tolerance is not None and not chosen.tolerance > 0:
        raise UsageError(f"tolerance {chosen.tolerance}: must be a standard error above 0, for example 0.005")
    if chosen.context is not None and chosen.context < 2:
        raise UsageError(f"context {chosen.context}: must be at least 2")
    if chosen.batch_tokens is not None and chosen.batch_tokens < 1:
        raise UsageError(f"batch_tokens {chosen.batch_tokens}: must be at least 1")
    return chosen


def _model_config(settings: Settings) -> ModelConfig:
    names = ("revision", "dtype", "device", "trust_remote_code")
    return validated(ModelConfig, {"source": "-", **{name: getattr(settings, name) for name in names}}, "measure")


def _values(
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
            f"the {role} model '{name}' gives no finite loss at {bad} of {len(values)} tokens: its weights hold NaN or "
            "infinity (a run that diverged?), or its dtype overflows (try --dtype float32)"
        )


def _sampling_notices(sampled: Sampled, settings: Settings) -> list[str]:
    if settings.tolerance is None or not sampled.complete:
        return []
    mean = clustered_mean(sampled.values["forgetting"], sampled.windows.token_documents())
    if mean.se <= settings.tolerance:
        return []
    return [f"all of the text was measured and the standard error is still above {settings.tolerance:g}: {mean.se:.4g}"]


def _means(sampled: Sampled) -> dict[str, Mean]:
    values = {quantity.name: sampled.values[quantity.name] for quantity in PAIR}
    return quantities.means(values, sampled.windows.token_documents())

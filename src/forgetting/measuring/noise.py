"""The noise floor: the base model measured against itself, computed in another way. Smaller differences mean nothing.

One rounding says little: it moves the mean forgetting up or down by chance, and so does the choice of documents. So the
base is rounded to the other dtype several times, once to the nearest number and then up or down at random. The interval
predicts one more such copy on other documents: it includes the spread between copies and the errors clustered by
document, with Student's t and Welch's degrees of freedom. Random rounding has twice the variance of rounding to the
nearest, so the interval is too wide rather than too narrow.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.untokenized import Untokenized
from ..data.windows import Windows
from ..models import accelerate_internals, adapters
from .base_targets import base_side
from .comparison import compare
from .estimate import clustered_mean
from .quantities import BY_NAME, SHARE
from .sampling import FIRST_TOKENS, in_random_order

NAMES = ("forgetting", "kl", "agreement")
CONFIDENCE = 0.95
NONE_SEEN = 3.7
"""Upper bound at CONFIDENCE on the number of events among n tokens if none was seen: -ln 0.025."""
ROUNDINGS = 4
"""Copies in the other dtype: one rounded to the nearest numbers, the rest at random."""


@dataclass(frozen=True)
class Floor:
    """One quantity of the base model against itself.

    Attributes:
        value: the mean over copies.
        low, high: prediction interval of one more copy on other documents, at CONFIDENCE; NaN with one document.
    """

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value is no larger than noise."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class NoiseFloor:
    """The base model against itself, by quantity: `forgetting`, `kl` and `agreement`.

    Attributes:
        batch: with another batch size; without `kl` if computing it uses the same batches for both.
        dtype: in another dtype; None for quantised or spread models.
        other_dtype: that dtype.
        roundings: number of copies in it: several if it is less precise, one if it represents the weights exactly, 0 if
            `dtype` is None.
        tokens, documents: how much text it was measured on.
    """

    batch: Mapping[str, Floor]
    dtype: Mapping[str, Floor] | None
    other_dtype: str
    roundings: int
    tokens: int
    documents: int

    def row(self) -> dict[str, Any]:
        """As columns: the value of `forgetting` without a suffix, the others and all interval ends with one."""
        out: dict[str, Any] = {"noise_floor_dtype": None}
        for which, floors in (("batch", self.batch), ("dtype", self.dtype or {})):
            for name, floor in floors.items():
                column = f"noise_floor_{which}" + ("" if name == "forgetting" else f"_{name}")
                ends = {column: floor.value, f"{column}_low": floor.low, f"{column}_high": floor.high}
                out |= {key: value if math.isfinite(value) else None for key, value in ends.items()}
        more = {"other_dtype": self.other_dtype, "roundings": self.roundings}
        more |= {"tokens": self.tokens, "documents": self.documents}
        return out | {f"noise_floor_{key}": value for key, value in more.items()}

    def shown(self) -> list[tuple[str, str, str, str]]:
        """Rows of a table: what, value, empty, interval and method."""
        rows = []
        ways = ((self.dtype or {}, f"in {self.other_dtype}"), (self.batch, "with another batch size"))
        for floors, how in ways:
            for name, floor in floors.items():
                said = (
                    "interval unknown"
                    if math.isnan(floor.low)
                    else f"{_text(name, floor.low)} to {_text(name, floor.high)}"
                )
                rows.append(
                    (f"noise floor, {BY_NAME[name].title}", _text(name, floor.value), "", f"{said}; the base {how}")
                )
        return rows


def _text(name: str, value: float) -> str:
    return f"{value:.4f}" if BY_NAME[name].unit == SHARE else f"{value:.1e}"


def noise_floor(
    base: Any, text: Windows | Untokenized, *, batch_tokens: int, seed: int, rows: int | None
) -> NoiseFloor:
    """Measure the base model against itself on about 8,192 tokens of whole documents.

    Args:
        base: the base model, or a PeftModel (adapters are disabled).
        text: the text.
        batch_tokens: the batch size used for the measurement; the other one is a third of it.
        seed: seed of the choice of documents, and of random rounding.
        rows: as in `compare`.
    """
    sample = in_random_order(text, seed).take(FIRST_TOKENS)
    documents = sample.token_documents()
    how: dict[str, Any] = {"batch_tokens": batch_tokens, "rows": rows}
    targets, expected = base_side(base, sample, key="noise", cache_dir=None, with_rows=True, **how)

    def values(model: Any, size: int) -> dict[str, NDArray[Any]]:
        with adapters.as_base(model):
            found = compare(base, model, sample, targets, expected, batch_tokens=size, rows=rows).per_token(targets)
        return {name: np.asarray(BY_NAME[name].values(found), np.float64) for name in NAMES}

    batch = _floors([values(base, max(1, batch_tokens // 3))], documents)
    if expected is None:
        del batch["kl"]
    stored = next(base.parameters()).dtype
    other = torch.bfloat16 if stored == torch.float32 else torch.float32
    name = str(other).removeprefix("torch.")
    size = (sample.n_predicted, len(np.unique(documents)))
    if accelerate_internals.spread(base) or getattr(base.config, "quantization_config", None):
        return NoiseFloor(batch, None, name, 0, *size)
    found = [values(model, batch_tokens) for model in _copies(base, other, seed)]
    return NoiseFloor(batch, _floors(found, documents), name, len(found), *size)


def _floors(found: Sequence[Mapping[str, NDArray[Any]]], documents: NDArray[Any]) -> dict[str, Floor]:
    """Each quantity's mean over copies, with the prediction interval of one more copy."""
    return {name: _floor([values[name] for values in found], documents, BY_NAME[name].unit == SHARE) for name in NAMES}


def _floor(copies: Sequence[NDArray[Any]], documents: NDArray[Any], share: bool) -> Floor:
    from scipy.special import stdtrit

    means = [clustered_mean(values, documents) for values in copies]
    each = np.array([mean.value for mean in means])
    value, count = float(each.mean()), len(np.unique(documents))
    if count < 2:
        return Floor(value, math.nan, math.nan)
    parts = [(float(np.mean([mean.se**2 for mean in means])), count - 1.0)]
    if each.size > 1:
        parts.append((float(each.var(ddof=1)) * (1 + 1 / each.size), each.size - 1.0))
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / freedom for variance, freedom in parts)
    freedom = total**2 / spread if spread > 0 else count - 1.0
    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * math.sqrt(total)
    if share:
        return Floor(value, min(value - half, 1 - NONE_SEEN / documents.size), min(value + half, 1.0))
    return Floor(value, value - half, value + half)


def _copies(base: Any, other: torch.dtype, seed: int) -> Iterator[Any]:
    """The base model in another dtype, one copy at a time: rounded to the nearest, then at random."""
    made = copy.deepcopy(base).to(other)
    yield made
    if other != torch.bfloat16:
        return
    generator = torch.Generator().manual_seed(seed)
    for _ in range(ROUNDINGS - 1):
        with torch.no_grad():
            for rounded, exact in zip(made.parameters(), base.parameters(), strict=True):
                if exact.dtype == torch.float32:
                    rounded.copy_(_rounded(exact, generator))
        yield made


def _rounded(exact: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """float32 numbers rounded to bfloat16, up or down at random with probabilities from the lower 16 bits."""
    noise = torch.randint(0, 1 << 16, exact.shape, generator=generator, dtype=torch.int32).to(exact.device)
    bits = (exact.detach().contiguous().view(torch.int32) + noise) & ~0xFFFF
    return bits.view(torch.float32)

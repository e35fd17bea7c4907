"""The noise floor: the base model against itself, computed in another way. A difference below it means nothing."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.windows import Windows
from ..models import accelerate_internals, adapters
from .base_targets import base_targets
from .losses import token_losses
from .quantities import BY_NAME
from .sampling import FIRST_TOKENS, _Documents


@dataclass(frozen=True)
class NoiseFloor:
    """Excess forgetting of the base model against itself, nats/token, absolute.

    Attributes:
        batch: with another batch size.
        dtype: in another dtype; None for quantised or spread models.
        other_dtype: which.
    """

    batch: float
    dtype: float | None
    other_dtype: str


def noise_floor(base: Any, windows: Windows, *, batch_tokens: int, seed: int, rows: int | None) -> NoiseFloor:
    """Measure it on about 8,192 tokens of whole documents.

    Args:
        base: the base model, or a PeftModel (adapters are disabled).
        windows: the text.
        batch_tokens: the batch size whose numbers are in doubt; the other one is a third of it.
        seed: of the choice of documents.
        rows: as in `token_losses`.
    """
    sample = windows.select(_Documents(windows, seed).take(FIRST_TOKENS))
    targets = base_targets(base, sample, key="noise", cache_dir=None, batch_tokens=batch_tokens, rows=rows)

    def excess(model: Any, size: int) -> float:
        with adapters.as_base(model):
            losses = token_losses(model, sample, targets, batch_tokens=size, rows=rows)
        values = BY_NAME["forgetting"].values(losses.per_token(targets))
        return abs(float(np.mean(values, dtype=np.float64)))

    batch = excess(base, max(1, batch_tokens // 3))
    stored = next(base.parameters()).dtype
    other = torch.bfloat16 if stored == torch.float32 else torch.float32
    name = str(other).removeprefix("torch.")
    if accelerate_internals.spread(base) or getattr(base.config, "quantization_config", None):
        return NoiseFloor(batch, None, name)
    return NoiseFloor(batch, excess(copy.deepcopy(base).to(other), batch_tokens), name)

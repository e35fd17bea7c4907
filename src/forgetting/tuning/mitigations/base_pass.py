"""The base model's logits while a model is trained from it: with adapters off if possible, else from a frozen copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...config.schema import RunConfig
from ...errors import UsageError
from ...models.adapters import as_base, is_peft, undisturbed
from ...models.comparable import check_live_adapter
from ...models.loading import load_base
from .base import Situation

R = TypeVar("R")
PROBE_TOKENS = 32
TOLERANCE = 1e-4
"""Share of the largest logit by which the model with disabled adapters may differ from the base model (rounding)."""


class BasePass:
    """Runs the base model, without a second copy in memory if possible.

    Attributes:
        copied: whether a frozen copy is kept.
    """

    def __init__(self, at: Situation) -> None:
        self._at = at
        vocabulary = at.base.model.get_input_embeddings().weight.shape[0]
        self._ids = torch.arange(min(PROBE_TOKENS, vocabulary), device=at.base.model.device)[None]
        self._expected = self._logits(at.base.model, self._ids, None)
        self._copy: Any = None
        self.copied = False

    def start(self, model: nn.Module) -> None:
        """Find out how to run the base model, once the method has prepared the model."""
        if is_peft(model) and _restored_by_disabling(model):
            found = self._disabled(model, self._ids, None)
            bound = TOLERANCE * float(self._expected.abs().max())
            if float((found - self._expected).abs().max()) <= bound:
                return
        self._copy = load_base(self._at.run.model, self._at.base.source).model.requires_grad_(False)
        self.copied = True

    def logits(self, model: nn.Module, ids: Tensor, mask: Tensor | None) -> Tensor:
        """[B, L, V] logits of the base model; the model in training, its modes and the random states are unchanged."""
        if self._copy is not None:
            return self._logits(self._copy, ids, mask)
        return self._disabled(model, ids, mask)

    def _disabled(self, model: nn.Module, ids: Tensor, mask: Tensor | None) -> Tensor:
        with undisturbed(model), as_base(model):
            return own_positions(model(input_ids=ids, attention_mask=mask, use_cache=False).logits, ids)

    def _logits(self, model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
        with undisturbed(model):
            logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits


def copy_held(run: RunConfig, model: nn.Module, base: int) -> int:
    """Bytes of the frozen copy of a base model of that size: 0 if switching the adapters off gives the base model."""
    from ..methods import METHODS

    switched = is_peft(model) and _restored_by_disabling(model)
    return 0 if switched and METHODS.parse(run.method).start != "rounding" else base


def _restored_by_disabling(model: nn.Module) -> bool:
    """Whether disabling the adapter also undoes what is trained beside it: with `bias: all` the base model's biases."""
    try:
        check_live_adapter(model)
    except UsageError:
        return False
    return True


def own_positions(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits at the text's own positions; virtual tokens of a prompt come before them."""
    return logits[:, -ids.shape[1] :]


def with_own_random(device: torch.device, seed: int, call: Callable[[], R]) -> R:
    """`call()` with its own seeded random states, so that training draws the same numbers as without it."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return call()

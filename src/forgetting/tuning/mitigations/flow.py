"""FLOW: gives more weight to what the base model finds easy.

Sanyal et al. 2025, *Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting*, arXiv:2502.02797.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...config.schema import RunConfig
from ...data.padding import IGNORED
from .base import Course, Mitigation, Situation, Takes, Term
from .base_losses import base_losses

if TYPE_CHECKING:
    from torch import Tensor, nn


class Flow(Mitigation):
    """Multiplies each window's loss by exp(-l / tau), l the base model's mean loss on it, tau their median.

    The weights are scaled to a mean of 1 over the training windows, so that the learning rate keeps its meaning.
    """

    name: ClassVar[str] = "flow"
    references: ClassVar[tuple[str, ...]] = ("sanyal2025flow",)
    excludes: ClassVar[tuple[str, ...]] = ("token_masking",)

    temperature: float = Field(1.0, gt=0, description="tau in medians of l; a list gives one run each")

    def takes(self, run: RunConfig, model: nn.Module, base: int) -> Takes:
        """Needs the batch's logits; see `Mitigation.takes`."""
        return Takes(reads_logits=True)

    def plan(self, course: Course, at: Situation) -> Course:
        """Weight the windows; see `Mitigation.plan`."""
        windows = course.windows
        sums = np.zeros(len(windows.input_ids))
        sums[windows.predicted] = base_losses(windows, at)
        losses = np.add.reduceat(sums, windows.offsets[:-1])
        losses /= np.add.reduceat(windows.predicted.astype(np.int64), windows.offsets[:-1])
        tau = self.temperature * float(np.median(losses))
        weights = easy_weights(losses, tau)
        at.facts[self.name] = {"tau": tau, "least": float(weights.min()), "most": float(weights.max())}
        return dataclasses.replace(course, weights=weights)


def easy_weights(losses: NDArray[np.float64], tau: float) -> NDArray[np.float64]:
    """[W] exp(-losses / tau), scaled to a mean of 1."""
    weights = np.exp(-(losses - losses.min()) / tau)
    result: NDArray[np.float64] = weights / weights.mean()
    return result


class Weighting(Term):
    """The effect of the weights on the loss: the sum of (weight - 1) * loss, divided by tokens."""

    def __init__(self, weights: NDArray[np.float64]) -> None:
        self.weights = weights

    def on_batch(self, model: nn.Module, batch: dict[str, Tensor], logits: Tensor, tokens: Tensor | int) -> Any:
        """See `Term.on_batch`."""
        import torch

        from .base_pass import own_positions

        labels = batch["labels"][:, 1:]
        scores = own_positions(logits, batch["input_ids"])[:, :-1].float().transpose(1, 2)
        nll = torch.nn.functional.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="none")
        extra = torch.from_numpy(self.weights[batch["window"].cpu().numpy()] - 1.0).to(nll)
        return (nll.sum(1) * extra).sum() / tokens

"""KL divergence between the base model and the one in training, and its gradient on windows of general text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from ...data.padding import IGNORED, right_padded
from ...data.windows import Windows, training_order
from .base_pass import own_positions, with_own_random

SALT = 2_000_003
"""Seed offset that makes the order of the general text independent of those of the task and of replay."""
Direction = Literal["forward", "reverse"]
BaseLogits = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""[B, L, V] of the base model: of the model in training, token ids and attention mask."""


def divergence(base: Tensor, tuned: Tensor, labels: Tensor, direction: Direction) -> Tensor:
    """Divergence summed over predicted tokens, nats; the logits at position t predict token t + 1."""
    at = labels[:, 1:] != IGNORED
    p, q = (log_softmax(z[:, :-1][at].float(), -1) for z in (base, tuned))
    if direction == "reverse":
        p, q = q, p
    # kl_div takes the arguments in reverse order: KL(p || q) = kl_div(q, p)
    result: Tensor = kl_div(q, p, reduction="sum", log_target=True)
    return result


class GeneralDivergence:
    """Adds the gradient of weight * KL, averaged over the predicted tokens of a few windows, once an update step.

    Which windows a step sees depends on the seed and the step alone. Draws nothing from the global random states.
    """

    def __init__(
        self, windows: Windows, count: int, steps: int, seed: int, base: BaseLogits, direction: Direction = "forward"
    ) -> None:
        """`count` windows a step, of a run of `steps` update steps."""
        self.windows, self.count, self.seed = windows, count, seed
        self.base, self.direction = base, direction
        self.order = training_order(len(windows), steps * count, seed + SALT)

    def add(self, model: nn.Module, step: int, weight: float, device: torch.device) -> None:
        """Add to the gradients.

        Args:
            model: in training.
            step: finished update steps.
            weight: of the divergence.
            device: that the model takes its tokens on.
        """
        chosen = [int(i) for i in self.order[step * self.count : (step + 1) * self.count]]
        rows, targets = [self.windows.window(i)[0] for i in chosen], [self.windows.labels(i) for i in chosen]
        padded = right_padded(rows, pad=0, labels=targets).values()
        ids, mask, labels = (torch.from_numpy(array).to(device) for array in padded)
        base = self.base(model, ids, mask)
        seed = int(np.random.default_rng([SALT, self.seed, step]).integers(2**62))
        tuned: Any = with_own_random(device, seed, lambda: model(input_ids=ids, attention_mask=mask, use_cache=False))
        loss = divergence(base, own_positions(tuned.logits, ids), labels, self.direction) / (labels != IGNORED).sum()
        torch.autograd.backward(weight * loss)

"""KL divergence between the base model and the model in training, and its gradient on windows of general text."""

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
"""Computes the base model's logits [B, L, V] from the model in training, token ids and attention mask [B, L]."""


def divergence(base: Tensor, tuned: Tensor, labels: Tensor, direction: Direction) -> Tensor:
    """KL divergence in nats, summed over predicted tokens; the logits at position t predict token t + 1.

    Args:
        base, tuned: [B, L, V] logits.
        labels: [B, L] token ids; IGNORED where no token is predicted.
        direction: `forward` is KL(base || tuned), `reverse` KL(tuned || base).
    """
    at = labels[:, 1:] != IGNORED
    p, q = (log_softmax(z[:, :-1][at].float(), -1) for z in (base, tuned))
    if direction == "reverse":
        p, q = q, p
    # kl_div takes the arguments in reverse order: KL(p || q) = kl_div(q, p)
    result: Tensor = kl_div(q, p, reduction="sum", log_target=True)
    return result


class GeneralDivergence:
    """Adds the gradient of weight * KL, averaged over the predicted tokens of a few windows, once per update step.

    The windows of a step depend only on the seed and the step. Does not change the global random states.

    Args:
        windows: the general text.
        count: windows per update step.
        steps: update steps of the run.
        seed: seed of the order of windows and of dropout.
        base: computes the base model's logits.
        direction: as in `divergence`.
    """

    def __init__(
        self, windows: Windows, count: int, steps: int, seed: int, base: BaseLogits, direction: Direction = "forward"
    ) -> None:
        self.windows, self.count, self.seed = windows, count, seed
        self.base, self.direction = base, direction
        self.order = training_order(len(windows), steps * count, seed + SALT)

    def add(self, model: nn.Module, step: int, weight: float, device: torch.device) -> None:
        """Add to the gradients of the model's parameters.

        Args:
            model: the model in training.
            step: number of finished update steps.
            weight: weight of the divergence in the loss.
            device: device of the model's input.
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

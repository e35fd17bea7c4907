"""The learning-rate schedules of a recipe, computed by transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import get_scheduler

from ..config.schema import TrainingConfig

NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
"""transformers' name of each `training.schedule`."""


def learning_rates(training: TrainingConfig) -> list[float]:
    """[steps] Learning rate of each update step, as a factor of `training.learning_rate`."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # only because a scheduler needs an optimiser
    scheduler: Any = get_scheduler(NAMES[training.schedule], optimizer, training.warmup_steps, training.steps)
    factor = scheduler.lr_lambdas[0]
    return [float(factor(step)) for step in range(training.steps)]

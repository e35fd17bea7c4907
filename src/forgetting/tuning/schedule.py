"""The learning-rate schedules of a recipe.

The formulas are those of transformers, which trains with its own (tests compare them). They are repeated here because
the process that shows a study's progress needs them for its forecasts, and loads neither transformers nor torch.
"""

from __future__ import annotations

import math

from ..config.schema import TrainingConfig

NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
"""transformers' name of each `training.schedule`."""


def learning_rates(training: TrainingConfig) -> list[float]:
    """[steps] Learning rate of each update step, as a factor of `training.learning_rate`."""
    return [_factor(training, step) for step in range(training.steps)]


def _factor(training: TrainingConfig, step: int) -> float:
    warmup, after = training.warmup_steps, max(1, training.steps - training.warmup_steps)
    if step < warmup:
        return step / max(1, warmup)
    if training.schedule == "linear":
        return max(0.0, (training.steps - step) / after)
    if training.schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / after))))
    return 1.0

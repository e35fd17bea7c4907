"""The cost of reaching the same fine-tuning loss: steps, training time, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forgetting.analysis.compare.path import Path

NAN = math.nan


@dataclass(frozen=True)
class Price:
    """Mean costs of runs until one fine-tuning loss; NaN if a run never reaches it, or a cost was not recorded.

    Attributes:
        loss: the loss (or accuracy) to reach: the best that every compared run has.
        steps, reference_steps: update steps until then.
        seconds, reference_seconds: training time until then, in seconds.
        memory, reference_memory: peak memory of the runs, MiB.
        params, reference_params: trainable parameters.
    """

    loss: float
    steps: float
    reference_steps: float
    seconds: float
    reference_seconds: float
    memory: float
    reference_memory: float
    params: float
    reference_params: float


def price(loss: float, shown: float, contender: Sequence[Path], reference: Sequence[Path]) -> Price:
    """The price of reaching `loss`, oriented so that lower is better; `shown` is its value in the table.

    Interpolated weights cost the whole training at any alpha. Of the reference, only runs that reach this loss count.
    """
    steps, seconds = _until(contender, loss)
    had = [p for p in reference if math.isfinite(p.cost(loss)[0])]
    reference_steps, reference_seconds = _until(had, loss)
    return Price(
        shown,
        steps,
        reference_steps,
        seconds,
        reference_seconds,
        _mean([p.run.memory for p in contender]),
        _mean([p.run.memory for p in had]),
        _mean([p.run.params for p in contender]),
        _mean([p.run.params for p in had]),
    )


def _until(paths: Sequence[Path], loss: float) -> tuple[float, float]:
    costs = [(float(p.run.step[-1]), float(p.run.seconds[-1])) if p.run.interpolated else p.cost(loss) for p in paths]
    return _mean([c[0] for c in costs]), _mean([c[1] for c in costs])


def _mean(values: Sequence[float]) -> float:
    """The mean; NaN if there is no value, or one is NaN."""
    return float(np.mean(values)) if values else NAN

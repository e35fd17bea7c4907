"""Settings for running suites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FEWSHOT_SEED = 1234
"""lm-eval's own default."""


@dataclass(frozen=True)
class Settings:
    """Settings for running suites, the same for both models.

    Attributes:
        limit: number of items of each task, from its first; None for all.
        batch_size: items per forward pass, which only affects memory and rounding; None: 256 for small models, else 16.
        chat: whether to apply the tokenizer's chat template; None: if it has one.
        fewshot: examples before each item; None: as the task is configured.
        seed: random seed of few-shot examples, and of tasks that sample.
        metric: metric to use as an item's score; None: the task's first that is between 0 and 1 for every item.
        cluster_by: field of an item that identifies its passage; None: the first of `harness.CLUSTER_FIELDS`.
        dtype: dtype of the models' weights; None: as they are stored.
    """

    limit: int | None = None
    batch_size: int | None = None
    chat: bool | None = None
    fewshot: int | None = None
    seed: int = FEWSHOT_SEED
    metric: str | None = None
    cluster_by: str | None = None
    dtype: str | None = None

    def deciding(self) -> dict[str, Any]:
        """The settings that determine the answers; others affect rounding, or scores, which are always recomputed."""
        return {name: value for name, value in vars(self).items() if name not in ("batch_size", "cluster_by", "metric")}

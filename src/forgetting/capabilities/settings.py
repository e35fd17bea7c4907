"""How suites are run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FEWSHOT_SEED = 1234
"""lm-eval's own default."""


@dataclass(frozen=True)
class Settings:
    """How suites are run, the same for both models.

    Attributes:
        limit: only the first so many items of each task; None all.
        batch_size: items a forward pass, memory and rounding only; None is 256 for a small model, else 16.
        chat: apply the tokenizer's chat template; None where it has one.
        fewshot: examples before each item; None as the task says.
        seed: of sampling, where a task samples, and of few-shot examples.
        metric: the metric that is an item's score; None the task's first that lies between 0 and 1 for every item.
        cluster_by: the field of an item that names its passage; None the first of `harness.CLUSTER_FIELDS` it has.
        dtype: of the models' weights; None as they are stored.
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
        """The settings that decide what is asked; scores are computed anew each time."""
        return {name: value for name, value in vars(self).items() if name not in ("batch_size", "cluster_by", "metric")}

"""`scale`: how much a trained adapter forgets at other scales, and the largest scale within a budget."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..config.arguments import checked, path_of
from ..data.windows import Windows
from ..display.numbers import counted
from ..errors import UsageError
from ..models import comparable, pair, sources
from ..models.scaled_adapter import ScaledAdapter
from .base_targets import base_targets
from .estimate import Mean, clustered_mean
from .losses import token_losses
from .measure import opened, settings_from
from .measurement import Settings
from .one_text import default_text, of_text
from .reading import Text, read_windows, text_source
from .scaling import GRID, Point, Scaling
from .verdict import LEAST, check_budget, judge

NEAR = 0.005
"""The search ends when it has narrowed the scale to an interval of this width."""
CLOSE = 0.98
"""The search ends when the upper bound of forgetting is at least this share of the budget."""
MOST = 12
"""Maximum number of scales that a search measures in addition to the grid."""


@checked
def scale(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    *,
    budget: float | None = None,
    confidence: float = 0.95,
    text: Text = None,
    train: Text = None,
    context: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: Literal["auto"] | None = None,
    bits: Literal[4, 8] | None = None,
    trust_remote_code: bool = False,
    batch_tokens: int | None = None,
    cache_dir: str | os.PathLike[str] | None = "auto",
) -> Scaling:
    """Measure a trained adapter at several scales, and find the largest scale within a budget of forgetting.

    Every scale is measured on the same tokens against the same base model. Other arguments are those of `measure`. The
    result can save the adapter at that scale.

    Args:
        base: a folder, Hub id, or `miniature`.
        adapter: a LoRA, LoHa, LoKr or (IA)³ adapter, by folder or Hub id.
        budget: allowed excess forgetting, nats/token; None measures only the grid of scales.
        confidence: of the one-sided upper bound that must be within the budget.
        text: general text, as in `measure`.
        train: held-out text of the adapter's task, to measure what a smaller scale costs there.

    Raises:
        UsageError: an adapter without a scale, a budget out of range, and the errors of `measure`.
    """
    settings = settings_from(locals())
    if budget is not None:
        check_budget(budget, confidence)
    given, task = text_source(text), None if train is None else text_source(train)
    source = sources.find(path_of("adapter", adapter, "a folder, a Hub id"), code=trust_remote_code)
    scaled = ScaledAdapter.of(source)
    models, settings = opened(base, source, None, settings)
    if models.base is not models.tuned:
        raise UsageError(
            f"adapter '{source.name}': it changes the base model itself, so scale 0 would not give the base model"
        )
    passes = _Passes.of(models, settings, default_text(models.names[0]) if text is None else given, task)
    with ExitStack() as stack:
        passes.set_to = stack.enter_context(scaled.at(models.tuned))
        _search(passes, budget, confidence)
    return passes.result(budget, confidence, scaled)


@dataclass
class _Passes:
    """The measurements at each scale, each done once.

    Attributes:
        whole: the measurement at scale 1.
        windows, targets: windows and base targets of the general text.
        rows: number of rows of the vocabulary that are compared; None means all.
        task, task_name: windows and name of the task's text; None if there is none.
        change: for each scale, [N] excess forgetting of each token.
        loss: for each scale, [M] loss of each token of the task's text.
        set_to: sets the adapter's scale.
    """

    models: pair.Pair
    settings: Settings
    whole: Any
    windows: Windows
    targets: Any
    rows: int | None
    task: Windows | None
    task_name: str | None
    notices: tuple[str, ...]
    change: dict[float, NDArray[Any]] = field(default_factory=dict)
    loss: dict[float, NDArray[Any]] = field(default_factory=dict)
    set_to: Callable[[float], None] = lambda _: None

    @classmethod
    def of(cls, models: pair.Pair, settings: Settings, text: Any, task: Any) -> _Passes:
        """Measure the adapter at scale 1 as `measure` does, and prepare what other scales need."""
        whole = of_text(models, text, settings)
        windows, size = whole.windows, settings.batch_tokens
        assert size is not None
        assert models.key is not None
        rows, _ = comparable.shared_rows(models.base, models.tuned, windows.largest)
        kept: dict[str, Any] = {"key": models.key, "cache_dir": settings.cache_dir}
        targets = base_targets(models.base, windows, batch_tokens=size, rows=rows, **kept)
        found, name = None, None
        told: list[str] = []
        if task is not None:
            found, name, _, told = read_windows(
                *(task, models.tokenizer, (models.base, models.tuned), settings.context),
                *(models.tuned_tokenizer, settings.cache_dir),
            )
        told = [notice for notice in told if notice not in whole.notices]
        made = cls(models, settings, whole, windows, targets, rows, found, name, (*whole.notices, *told))
        made.change[1.0] = whole.change
        return made

    def at(self, scale: float) -> Mean:
        """Mean forgetting at a scale, measured if it has not been yet."""
        size = self.settings.batch_tokens
        assert size is not None
        self.set_to(scale)
        if scale not in self.change:
            found = token_losses(self.models.tuned, self.windows, self.targets, batch_tokens=size, rows=self.rows)
            assert found.target_nll is not None
            self.change[scale] = found.target_nll + self.targets.log_prob
        if self.task is not None and scale not in self.loss:
            self.loss[scale] = token_losses(self.models.tuned, self.task, None, batch_tokens=size).data_nll
        return clustered_mean(self.change[scale], self.windows.token_documents())

    def point(self, scale: float) -> Point:
        """The means measured at a scale."""
        loss = cost = None
        if self.task is not None:
            documents = self.task.token_documents()
            loss = clustered_mean(self.loss[scale], documents)
            cost = clustered_mean(self.loss[scale].astype(np.float64) - self.loss[1.0], documents)
        return Point(scale, clustered_mean(self.change[scale], self.windows.token_documents()), loss, cost)

    def falls(self) -> tuple[float, float] | None:
        """Two neighbouring scales of which the larger forgets significantly less (paired, one-sided, 95 %)."""
        scales, documents = sorted(self.change), self.windows.token_documents()
        for one, other in pairwise(scales):
            less = clustered_mean(self.change[one].astype(np.float64) - self.change[other], documents)
            if less.n_documents >= LEAST and less.value - less.bound(0.95) > 0:
                return one, other
        return None

    def result(self, budget: float | None, confidence: float, adapter: ScaledAdapter) -> Scaling:
        """All measured scales as a result."""
        points = tuple(self.point(scale) for scale in sorted(self.change))
        return Scaling(
            base=self.models.names[0],
            tuned=self.models.names[1],
            text=self.whole.text,
            task_text=self.task_name,
            points=points,
            budget=budget,
            confidence=confidence,
            falls=self.falls(),
            dtype=self.models.dtype,
            notices=self.notices,
            adapter=adapter,
        )


def _search(passes: _Passes, budget: float | None, confidence: float) -> None:
    """Measure the grid and, with a budget, narrow down the largest scale up to which all scales are within it."""
    means = {scale: passes.at(scale) for scale in GRID}
    if budget is None:
        return
    documents = means[1.0].n_documents
    if documents < LEAST:
        raise UsageError(
            f"budget {budget:g}: {counted(documents, 'document', 'has')} no reliable standard error, so no scale "
            f"is chosen; give at least {LEAST} documents"
        )

    def high(scale: float) -> float:
        return judge(means[scale], budget, confidence).high

    first = next((scale for scale in GRID if scale > 0 and high(scale) > budget), None)
    if first is None:
        return
    low, top = max(scale for scale in GRID if scale < first), first
    for turn in range(MOST):
        if top - low <= NEAR or (low > 0 and high(low) >= CLOSE * budget):
            return
        middle = _between(low, top, high(low), high(top), budget, turn)
        means[middle] = passes.at(middle)
        low, top = (middle, top) if high(middle) <= budget else (low, middle)


def _between(low: float, top: float, below: float, above: float, budget: float, turn: int) -> float:
    """The next scale: slightly below where a straight line reaches the budget; every third time the midpoint."""
    share = 0.5 if turn % 3 == 2 else 0.99 * (budget - below) / (above - below)
    return round(low + (top - low) * min(0.95, max(0.05, share)), 4)

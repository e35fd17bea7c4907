"""Chooses which metric of a task is used as the score of its items, the same for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, did_you_mean
from . import lm_eval_internals

POOLED = (
    *("perplexity", "weighted_perplexity", "bits_per_byte", "f1", "matthews_corrcoef"),
    *("bleu", "chrf", "chrf++", "ter", "brier_score"),
)
"""lm-eval's aggregations of values that are not scores, but log-likelihoods, or pairs of texts or classes."""
BYPASS = "bypass"
"""lm-eval's metric for a task without a score; used if replies are judged afterwards."""


@dataclass(frozen=True)
class Metric:
    """A metric whose value for an item is its score, or 1 minus its score if lower is better."""

    name: str
    higher_is_better: bool

    def score(self, value: float) -> float:
        """The score of an item: between 0 and 1, higher is better."""
        return value if self.higher_is_better else 1 - value


def check(name: str, task: Any) -> None:
    """Refuse a task without a metric for single items, or with a metric that cannot be computed.

    Raises:
        UsageError: names the task and its metrics.
    """
    aggregations: Mapping[str, Any] = task.aggregation() or {}
    for metric, aggregation in aggregations.items():
        if not callable(aggregation):
            raise UsageError(f"task {name}: metric '{metric}': lm-eval has no such aggregation; use mean, for example")
    for metric, better in (task.higher_is_better() or {}).items():
        if better is not None and not isinstance(better, bool):
            raise UsageError(f"task {name}: metric '{metric}': higher_is_better: got {better!r}; give true or false")
    if not lm_eval_internals.made_in_python(task) and aggregations and set(aggregations) <= _pooled(task):
        raise UsageError(
            f"task {name}: no metric per item between 0 and 1 (it has {', '.join(aggregations)}); add one, "
            "such as acc or exact_match"
        )


def check_wanted(name: str, task: Any, wanted: str | None) -> None:
    """Refuse a metric that a task does not have, if this is known before the task is run.

    Raises:
        UsageError: suggests another metric.
    """
    listed = list(task.aggregation() or {})
    known = task.OUTPUT_TYPE in ("loglikelihood", "multiple_choice") and not lm_eval_internals.made_in_python(task)
    if known and wanted is not None and wanted not in listed and BYPASS not in listed:
        raise UsageError(f"task {name}: no metric '{wanted}'; {did_you_mean(wanted, listed)}")


def check_options(name: str, task: Any, limit: int | None) -> None:
    """Refuse options that are not a list of strings, and a task in which no target is an option: all scores would be 0.

    Raises:
        UsageError: names the item.
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    hit, first = lm_eval_internals.made_in_python(task), ""
    for doc_id, doc in task.doc_iterator(limit=limit, rank=0, world_size=1):
        options = task.doc_to_choice(doc)
        if not isinstance(options, list) or not options or not all(isinstance(option, str) for option in options):
            raise UsageError(
                f"task {name}, item {doc_id}: its options are {options!r:.120}; they must be a list of strings"
            )
        if hit:
            continue
        target = task.doc_to_text(doc) if lm_eval_internals.gold_in_text(task) else task.doc_to_target(doc)
        targets = target if isinstance(target, list) else [target]
        hit = any(0 <= one < len(options) if isinstance(one, int) else one in options for one in targets)
        first = first or f"item {doc_id}: {target!r:.60}, and its options are {options!r:.120}"
    if not hit:
        raise UsageError(f"task {name}: no item's target is one of its options ({first})")


def choose(name: str, task: Any, samples: Sequence[Mapping[str, Any]], wanted: str | None) -> Metric | None:
    """Choose the metric of a task: the requested one, or the first whose value is between 0 and 1 for every item.

    Args:
        name: name of the task.
        task: lm-eval's task.
        samples: lm-eval's record of every item.
        wanted: the requested metric, if any.

    Returns:
        The metric; None if replies are judged.

    Raises:
        UsageError: no such metric, or an item's value is not between 0 and 1.
    """
    listed = list(dict.fromkeys(metric for sample in samples for metric in sample["metrics"]))
    if BYPASS in listed:
        return None
    pooled = _pooled(task)
    declared = [metric for metric in (task.aggregation() or {}) if metric in listed]
    candidates = list(dict.fromkeys([*declared, *listed]))
    if wanted is not None:
        if wanted not in listed:
            raise UsageError(f"task {name}: no metric '{wanted}'; {did_you_mean(wanted, candidates)}")
        problem = "it is not computed per item" if wanted in pooled else _unfit(samples, wanted)
        if problem:
            raise UsageError(f"metric '{wanted}' of task {name}: {problem}")
        return Metric(wanted, _higher(task, wanted))
    for metric in candidates:
        if metric not in pooled and not _unfit(samples, metric):
            return Metric(metric, _higher(task, metric))
    raise UsageError(f"task {name}: no metric per item between 0 and 1 (it has {', '.join(candidates)})")


def number(value: Any) -> float | None:
    """An item's value as a number, also if it is from numpy or torch; None if it is not a number."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    return float(value) if isinstance(value, bool | int | float) else None


def _unfit(samples: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Why a metric cannot be used as the score; empty if it can."""
    for sample in samples:
        value = number(sample.get(metric)) if metric in sample["metrics"] else None
        if value is None or math.isnan(value) or not 0 <= value <= 1:
            shown = "nothing" if metric not in sample["metrics"] else f"{sample.get(metric)!r:.60}"
            return f"the value of item {sample['doc_id']} is {shown}, which is not between 0 and 1"
    return ""


def _higher(task: Any, metric: str) -> bool:
    return (task.higher_is_better() or {}).get(metric) is not False


def _pooled(task: Any) -> set[str]:
    """Metrics that are computed from all items together."""
    known: list[Callable[..., Any] | None] = [lm_eval_internals.aggregation(name) for name in POOLED]
    return {metric for metric, aggregation in (task.aggregation() or {}).items() if aggregation in known}

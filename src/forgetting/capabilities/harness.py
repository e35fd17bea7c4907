"""lm-evaluation-harness on a live model: the stock evaluator and its stock Hugging Face wrapper, item by item.

Scores are those of the `lm_eval` command on the same model, task and settings. One model lies in memory: the base is
the tuned model with its adapters switched off, where they can be.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..errors import ForgettingError, UsageError
from . import lm_eval_internals, metrics
from .console import console, quiet
from .explain import explained, where_raised
from .rendering import items_of, request_hash, tokenizer_key
from .replies import OTHER
from .served import Served
from .settings import Settings
from .tasks import as_it_is_now

CATEGORY_FIELDS = ("category", "kind", "subject")
CLUSTER_FIELDS = ("cluster", "passage_id", "context_id")
Model = Callable[[], AbstractContextManager[Any]]
"""Gives the model in the state in which it is to be asked; called only where something must be asked."""


def run(
    model: Model,
    tokenizer: Any,
    loaded: Mapping[str, Any],
    settings: Settings,
    stored: Sequence[Mapping[str, Any]] = (),
) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Every item of every task, answered by one model.

    Args:
        model: a causal language model of transformers, or a PeftModel, as it is to be evaluated.
        tokenizer: for both models the same.
        loaded: from `load_tasks`, rendered by `rendering.prepare`.
        settings: how.
        stored: rows of earlier answers; an item that the model was shown before, word for word, is not asked again.

    Returns:
        Task name -> rows in the items' order, one an item and filter (see `answers.FIELDS`); how many items were asked.

    Raises:
        UsageError: the metric is none of a task's, or a task does not fit the model.
        ForgettingError: the model's outputs are not finite, or memory is short.
    """
    from lm_eval.evaluator import evaluate  # type: ignore[import-untyped]

    from .recall import Recalling

    quiet()
    hashes = _hashes(loaded["tasks"], tokenizer)
    known = _known(loaded["tasks"], hashes, stored)
    total = sum(map(len, hashes.values()))
    asked = total - sum(len({r.doc_id for r in t.instances if id(r) in known}) for t in loaded["tasks"].values())
    for task in loaded["tasks"].values():
        for request in task.instances:
            request.resps, request.filtered_resps = [], {}
    recalling = Recalling(known, lambda kind, requests: _ask(model, tokenizer, settings, kind, requests))
    with seeded(settings.seed), _rendered(loaded["tasks"].values()), console(), as_it_is_now():
        try:
            found = evaluate(lm=recalling, task_dict=dict(loaded), limit=settings.limit, bootstrap_iters=0)
        except (MemoryError, ForgettingError):
            raise
        except Exception as error:
            at = _failing_score(loaded["tasks"])
            raise UsageError(f"{at}: cannot be scored: {explained(error)}{where_raised(error)}") from None
    rows = {
        name: rows_of(found["samples"][name], name, loaded["tasks"][name], settings, hashes[name])
        for name in loaded["tasks"]
    }
    return rows, asked


def unanswered(loaded: Mapping[str, Any], tokenizer: Any, stored: Sequence[Mapping[str, Any]]) -> int:
    """The number of items that a model was not shown as they are now, whether or not its replies were kept."""
    there = {row.get("request_hash") for row in stored}
    hashes = _hashes(loaded["tasks"], tokenizer)
    return sum(one not in there for mine in hashes.values() for one in mine.values())


def _hashes(tasks: Mapping[str, Any], tokenizer: Any) -> dict[str, dict[int, str]]:
    """Task -> item -> hash of what the model is shown."""
    key = tokenizer_key(tokenizer)
    return {name: {n: request_hash(rs, key) for n, rs in items_of(task).items()} for name, task in tasks.items()}


def _known(
    tasks: Mapping[str, Any], hashes: Mapping[str, Mapping[int, str]], stored: Sequence[Mapping[str, Any]]
) -> dict[int, list[Any]]:
    """The stored responses to each request, by its `id`; only of items that are stored whole."""
    waiting: dict[str, list[Any]] = {}
    for row in stored:
        if row.get("request_hash") and row.get("responses") is not None:
            waiting.setdefault(row["request_hash"], []).append(row["responses"])
    found: dict[int, list[Any]] = {}
    for name, task in tasks.items():
        for doc_id, requests in items_of(task).items():
            there = waiting.get(hashes[name][doc_id])
            if not there:
                continue
            responses = there.pop(0)  # an item that stands there twice was asked twice: it may have been sampled
            if [len(r) for r in responses] == [r.repeats for r in requests]:
                found |= {id(request): list(mine) for request, mine in zip(requests, responses, strict=True)}
    return found


def _ask(model: Model, tokenizer: Any, settings: Settings, kind: str, requests: list[Any]) -> list[Any]:
    """Ask the live model.

    Raises:
        UsageError: the requests do not fit the model.
        ForgettingError: memory is short, or outputs are not finite.
    """
    import torch

    from ..models.adapters import undisturbed
    from ..models.generation import length_as_asked

    with model() as live, contextlib.nullcontext() if isinstance(live, Served) else undisturbed(live):
        try:
            if isinstance(live, Served):
                return _finite(kind, live.ask(kind, requests, settings.seed), requests)
            torch.manual_seed(settings.seed)  # put back by `undisturbed`
            with length_as_asked(live):
                found: list[Any] = getattr(as_lm(live, tokenizer, settings.batch_size), kind)(requests)
        except ForgettingError:
            raise
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
                raise ForgettingError("evaluate: out of memory; give a smaller batch_size (--batch-size)") from None
            names = ", ".join(dict.fromkeys(str(request.task_name) for request in requests))
            hint = "; see max_new_tokens (--max-new-tokens)" if "max tokens to generate" in str(error) else ""
            raise UsageError(f"task {names:.120}: the model cannot be evaluated: {explained(error)}{hint}") from None
    return _finite(kind, found, requests)


def _finite(kind: str, answers: list[Any], requests: Sequence[Any]) -> list[Any]:
    from .recall import check_finite

    if kind == "loglikelihood":
        check_finite(answers, requests)
    return answers


@contextlib.contextmanager
def _rendered(tasks: Any) -> Iterator[None]:
    """The evaluator takes the requests that are rendered, in place of rendering them once more for each model."""
    for task in tasks:
        task.build_all_requests = lambda **_: None
    try:
        yield
    finally:
        for task in tasks:
            del task.build_all_requests


def _failing_score(tasks: Mapping[str, Any]) -> str:
    """Which task and item cannot be scored, where it can be told."""
    for name, task in tasks.items():
        try:
            task.apply_filters()
        except Exception:
            return f"task {name}"
        for doc_id, requests in items_of(task).items():
            for key in requests[0].filtered_resps:
                try:
                    task.process_results(requests[0].doc, [request.filtered_resps[key] for request in requests])
                except Exception:
                    return f"task {name}, item {doc_id}"
    return f"task {', '.join(tasks):.120}"


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed what lm-eval's tasks draw from; afterwards the generators go on as if nothing had been drawn."""
    import random

    import numpy as np

    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - tasks draw from the global generator
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def rows_of(
    samples: Sequence[Mapping[str, Any]], name: str, task: Any, settings: Settings, hashes: Mapping[int, str]
) -> list[dict[str, Any]]:
    """What is kept of a task's items: hashes that pair them, answers, scores, and the slices that they belong to."""
    metric = metrics.choose(name, task, samples, settings.metric)
    requests, seen, rows = items_of(task), set(), []
    for sample in samples:
        row = _row(sample, name, task, metric, settings)
        row["request_hash"] = hashes[sample["doc_id"]]
        first = sample["doc_id"] not in seen
        seen.add(sample["doc_id"])
        row["responses"] = [_plain(request.resps) for request in requests[sample["doc_id"]]] if first else None
        rows.append(row)
    return rows


def _plain(responses: Sequence[Any]) -> list[Any]:
    return [list(response) if isinstance(response, tuple) else response for response in responses]


def _row(
    sample: Mapping[str, Any], name: str, task: Any, metric: metrics.Metric | None, settings: Settings
) -> dict[str, Any]:
    doc, kind = sample["doc"], task.OUTPUT_TYPE
    choices = task.doc_to_choice(doc) if kind == "multiple_choice" else None
    value = None if metric is None else metrics.number(sample[metric.name])
    return {
        "task": name,
        "filter": sample["filter"],
        "doc_id": sample["doc_id"],
        "doc_hash": sample["doc_hash"],
        "prompt_hash": sample["prompt_hash"],
        "prompt": _field(doc, ("prompt",)) or str(sample["arguments"][0][0]),
        "target": _target(_gold(task, doc, sample["target"]), choices),
        "answer": _answer(sample, choices, metric),
        "reply": _text(sample["resps"][0][0]) if kind == "generate_until" else None,
        "metric": None if metric is None else metric.name,
        "higher_is_better": None if metric is None else metric.higher_is_better,
        "score": None if metric is None or value is None else metric.score(value),
        "options": len(choices) if choices is not None else _alternatives(sample["filtered_resps"]),
        "category": _field(doc, CATEGORY_FIELDS) or name,
        "cluster": _field(doc, (settings.cluster_by,) if settings.cluster_by else CLUSTER_FIELDS),
        "expect": _field(doc, ("expect",)) or None,
    }


def _answer(sample: Mapping[str, Any], choices: Sequence[str] | None, metric: metrics.Metric | None) -> str:
    """The chosen option, by the rule of the metric; of a log-likelihood, whether it is the target; or the reply."""
    responses = sample["filtered_resps"]
    if choices is not None:
        return str(choices[_chosen([float(r[0]) for r in responses], choices, metric.name if metric else "")])
    if _scored(responses):
        if len(responses) == 1:
            return str(sample["arguments"][0][1]) if responses[0][1] else OTHER
        best = max(range(len(responses)), key=lambda i: float(responses[i][0]))
        return str(sample["arguments"][best][1])
    return _text(responses[0])


def _scored(responses: Sequence[Any]) -> bool:
    """Whether responses are log-likelihoods, each with whether it is greedy."""
    return all(isinstance(r, list | tuple) and len(r) == 2 and isinstance(r[1], bool) for r in responses)


def _alternatives(responses: Sequence[Any]) -> int:
    """The number of options that a task of its own Python has scored; 0 where the answer is free."""
    return len(responses) if len(responses) > 1 and _scored(responses) else 0


def _chosen(scores: Sequence[float], choices: Sequence[str], metric: str) -> int:
    """The number of the option that a metric of lm-eval counts as chosen."""
    lengths = {"acc_norm": [len(c) for c in choices], "acc_bytes": [len(c.encode()) for c in choices]}.get(metric)
    mine = list(scores[: len(choices)])
    if metric == "acc_mutual_info" and len(scores) == 2 * len(choices):
        mine = [a - b for a, b in zip(mine, scores[len(choices) :], strict=True)]
    if lengths is not None:
        mine = [score / length if length else -math.inf for score, length in zip(mine, lengths, strict=True)]
    return max(range(len(mine)), key=mine.__getitem__)


def _gold(task: Any, doc: Mapping[str, Any], target: Any) -> Any:
    """The target; where the options stand in the prompt (Winogrande), the number of the right one."""
    return task.doc_to_text(doc) if lm_eval_internals.gold_in_text(task) else target


def _target(target: Any, choices: Sequence[str] | None) -> Any:
    if isinstance(target, list | tuple):
        return _target(target[0], choices) if len(target) == 1 else [_target(one, choices) for one in target]
    inside = choices is not None and isinstance(target, int) and 0 <= target < len(choices)
    return str(choices[target] if inside and choices is not None else target)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else str(value)


def _field(doc: Any, names: Sequence[str]) -> str:
    """The first of some fields that an item has; a task in Python may have items without fields."""
    found = doc if isinstance(doc, Mapping) else {}
    return next((str(found[name]) for name in names if found.get(name) not in (None, "")), "")


def as_lm(model: Any, tokenizer: Any, batch_size: int | None = None) -> Any:
    """lm-eval's wrapper of a live model, which is left as it is.

    The wrapper ties the output head to the embedding where the model's configuration says so. A head that was saved
    with an adapter is its own: tying it would fail, or give the answers of another model.
    """
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

    model.tie_weights = lambda *_, **__: None
    try:
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size or default_batch(model))
    finally:
        del model.tie_weights


def default_batch(model: Any) -> int:
    """Items a forward pass: many for a model so small that its arrays are; few where memory may be short."""
    from ..models.loading import count_parameters

    return 256 if count_parameters(model, trainable=False) < 50_000_000 else 16


@contextlib.contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """The base of a PeftModel; any other model as it is."""
    from ..models.adapters import as_base

    with as_base(model):
        yield

"""Runs lm-evaluation-harness on a loaded model, with its own evaluator and Hugging Face wrapper, item by item.

Scores equal those of the `lm_eval` command for the same model, task and settings. If possible, only one model is in
memory: the base is the tuned model with its adapters switched off.
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
"""Opens the model in the state in which it is asked; called only if something must be asked."""


def run(
    model: Model,
    tokenizer: Any,
    loaded: Mapping[str, Any],
    settings: Settings,
    stored: Sequence[Mapping[str, Any]] = (),
) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Ask one model every item of every task, and score the answers.

    Args:
        model: opens a causal language model of transformers, a PeftModel or a served model.
        tokenizer: the tokenizer of both models.
        loaded: tasks from `load_tasks`, rendered by `rendering.prepare`.
        settings: how to run them.
        stored: rows of earlier answers; an item that the model was shown before, unchanged, is not asked again.

    Returns:
        By task name, one row per item and filter in the items' order (see `answers.FIELDS`); and the number of items
        asked.

    Raises:
        UsageError: a task does not have the metric, does not fit the model, or cannot be scored.
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
    """The number of items that a model has not been shown in their present form, whether or not replies were kept."""
    there = {row.get("request_hash") for row in stored}
    hashes = _hashes(loaded["tasks"], tokenizer)
    return sum(one not in there for mine in hashes.values() for one in mine.values())


def _hashes(tasks: Mapping[str, Any], tokenizer: Any) -> dict[str, dict[int, str]]:
    """By task and item, the hash of what the model is shown."""
    key = tokenizer_key(tokenizer)
    return {name: {n: request_hash(rs, key) for n, rs in items_of(task).items()} for name, task in tasks.items()}


def _known(
    tasks: Mapping[str, Any], hashes: Mapping[str, Mapping[int, str]], stored: Sequence[Mapping[str, Any]]
) -> dict[int, list[Any]]:
    """The stored responses to each request, by its Python `id`; only for items with all their responses."""
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
            responses = there.pop(0)  # an item that occurs twice was asked twice, because replies may be sampled
            if [len(r) for r in responses] == [r.repeats for r in requests]:
                found |= {id(request): list(mine) for request, mine in zip(requests, responses, strict=True)}
    return found


def _ask(model: Model, tokenizer: Any, settings: Settings, kind: str, requests: list[Any]) -> list[Any]:
    """Ask the loaded or served model.

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
            torch.manual_seed(settings.seed)  # `undisturbed` restores the generator
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
    """Make the evaluator use the requests that are already rendered, instead of rendering them for each model."""
    for task in tasks:
        task.build_all_requests = lambda **_: None
    try:
        yield
    finally:
        for task in tasks:
            del task.build_all_requests


def _failing_score(tasks: Mapping[str, Any]) -> str:
    """The task and, if it can be found, the item that cannot be scored."""
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
    """Seed the generators that lm-eval's tasks draw from, and restore their state afterwards."""
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
    """The rows of a task to store; see `answers.FIELDS`."""
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
    """The option chosen by the metric's rule; for a single log-likelihood, the target or OTHER; else the reply."""
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
    """Whether responses are pairs of a log-likelihood and whether it is greedy."""
    return all(isinstance(r, list | tuple) and len(r) == 2 and isinstance(r[1], bool) for r in responses)


def _alternatives(responses: Sequence[Any]) -> int:
    """The number of options that a task written in Python has scored; 0 for a free answer."""
    return len(responses) if len(responses) > 1 and _scored(responses) else 0


def _chosen(scores: Sequence[float], choices: Sequence[str], metric: str) -> int:
    """The index of the option that counts as chosen under a metric of lm-eval."""
    lengths = {"acc_norm": [len(c) for c in choices], "acc_bytes": [len(c.encode()) for c in choices]}.get(metric)
    mine = list(scores[: len(choices)])
    if metric == "acc_mutual_info" and len(scores) == 2 * len(choices):
        mine = [a - b for a, b in zip(mine, scores[len(choices) :], strict=True)]
    if lengths is not None:
        mine = [score / length if length else -math.inf for score, length in zip(mine, lengths, strict=True)]
    return max(range(len(mine)), key=mine.__getitem__)


def _gold(task: Any, doc: Mapping[str, Any], target: Any) -> Any:
    """The target; if the options are part of the prompt (Winogrande), the index of the right one."""
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
    """The value of the first of these fields that an item has; empty for items without fields, of tasks in Python."""
    found = doc if isinstance(doc, Mapping) else {}
    return next((str(found[name]) for name in names if found.get(name) not in (None, "")), "")


def as_lm(model: Any, tokenizer: Any, batch_size: int | None = None) -> Any:
    """lm-eval's wrapper of a loaded model, without changing the model.

    The wrapper would tie the output head to the embedding if the model's configuration says so. If an adapter was saved
    with its own head, tying would fail or give the answers of another model, so it is prevented.
    """
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

    model.tie_weights = lambda *_, **__: None
    try:
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size or default_batch(model))
    finally:
        del model.tie_weights


def default_batch(model: Any) -> int:
    """Items per forward pass: many for a small model, few if memory may be short."""
    from ..models.loading import count_parameters

    return 256 if count_parameters(model, trainable=False) < 50_000_000 else 16


@contextlib.contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """Switch off the adapters of a PeftModel in the block; other models are not changed."""
    from ..models.adapters import as_base

    with as_base(model):
        yield

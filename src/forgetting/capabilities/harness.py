"""lm-evaluation-harness on a live model: the stock evaluator and its stock Hugging Face wrapper, item by item.

Scores are those of the `lm_eval` command on the same model, task and settings. One model lies in memory: the base is
the tuned model with its adapters switched off, where they can be.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ForgettingError, UsageError, did_you_mean

FEWSHOT_SEED = 1234
"""lm-eval's own default."""
CATEGORY_FIELDS = ("category", "kind", "subject")
CLUSTER_FIELDS = ("cluster", "passage_id", "context_id")


@dataclass(frozen=True)
class Settings:
    """How suites are run, the same for both models.

    Attributes:
        limit: only the first so many items of each task; None all.
        batch_size: items a forward pass, memory and rounding only; None is 256 for a small model, else 16.
        chat: apply the tokenizer's chat template; None where it has one.
        fewshot: examples before each item; None as the task says.
        seed: of sampling, where a task samples, and of few-shot examples.
        metric: the metric that is an item's score; None the task's first that lies between 0 and 1.
        cluster_by: the field of an item that names its passage; None the first of CLUSTER_FIELDS that it has.
    """

    limit: int | None = None
    batch_size: int | None = None
    chat: bool | None = None
    fewshot: int | None = None
    seed: int = FEWSHOT_SEED
    metric: str | None = None
    cluster_by: str | None = None

    def deciding(self) -> dict[str, Any]:
        """The settings that decide numbers."""
        return {name: value for name, value in vars(self).items() if name not in ("batch_size", "cluster_by")}


def load_tasks(specs: Sequence[str | Path]) -> dict[str, Any]:
    """lm-eval's task dictionary of names and YAML files; under `origin`, which of them each task came from.

    Raises:
        UsageError: an unknown name (suggests), or a file that lm-eval cannot read.
        ForgettingError: a task's data cannot be had, as without a network.
    """
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

    quiet()
    named = [str(spec) for spec in specs if not Path(spec).suffix]
    if named:
        sys.stderr.write("reading the list of lm-eval's tasks ...\n")
    manager = TaskManager(include_defaults=bool(named))
    for name in named:
        if name not in manager.task_index:
            raise UsageError(f"task: lm-eval has none called '{name}'; {_suggest(name, manager.all_tasks)}")
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}, "origin": {}}
    for spec in specs:
        try:
            with console():
                one = manager.load([str(spec)])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"task {spec}: lm-eval cannot load it: {_first_line(error)}") from None
        except Exception as error:  # data sets, hubs and YAML fail in ways of their own
            raise ForgettingError(f"task {spec}: its data cannot be had: {_first_line(error)}") from None
        twice = set(one["tasks"]) & set(loaded["tasks"])
        if twice:
            raise UsageError(f"task {spec}: '{min(twice)}' is asked for twice")
        for part, content in one.items():
            loaded[part].update(content)
        loaded["origin"].update(dict.fromkeys(one["tasks"], Path(spec).stem if Path(spec).suffix else str(spec)))
    return loaded


def _suggest(name: str, names: Sequence[str]) -> str:
    """A close match; lm-eval has thousands of tasks, so those that are no match are not listed."""
    found = did_you_mean(name, names)
    if found.startswith("did you mean"):
        return found.split(" (choices")[0]
    inside = [n for n in names if name.lower() in n.lower()][:5]
    return "like it: " + ", ".join(inside) if inside else "`lm_eval ls tasks` lists them"


def run(model: Any, tokenizer: Any, loaded: Mapping[str, Any], settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Every item of every task, answered by one model.

    Args:
        model: a causal language model of transformers, or a PeftModel, as it is to be evaluated.
        tokenizer: for both models the same.
        loaded: from `load_tasks`.
        settings: how.

    Returns:
        Task name -> rows in the items' order, one an item and filter (see `_row`).

    Raises:
        UsageError: the metric is none of a task's, or a task does not fit the model.
    """
    from lm_eval.evaluator import evaluate  # type: ignore[import-untyped]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

    from ..models.adapters import undisturbed

    quiet()
    chat = tokenizer.chat_template is not None if settings.chat is None else settings.chat
    if chat and tokenizer.chat_template is None:
        raise UsageError("chat: the tokenizer has no chat template; leave --chat out")
    for task in loaded["tasks"].values():
        _prepare(task, settings)
    with undisturbed(model), _seeded(settings.seed), console():
        try:
            found = evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size or default_batch(model)),
                task_dict=dict(loaded),
                limit=settings.limit,
                bootstrap_iters=0,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
        except (ValueError, AssertionError) as error:
            raise UsageError(f"lm-eval: {_first_line(error)}") from None
    return {
        name: [_row(sample, name, loaded["tasks"][name], settings) for sample in found["samples"][name]]
        for name in loaded["tasks"]
    }


def _prepare(task: Any, settings: Settings) -> None:
    """Few-shot examples as `simple_evaluate` sets them; the same ones for each model."""
    default = task.get_config("num_fewshot")
    if settings.fewshot is not None and default != 0:
        task.set_config(key="num_fewshot", value=settings.fewshot)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=settings.seed)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed what lm-eval's tasks draw from; afterwards the generators go on as if nothing had been drawn.

    torch's own is put back by `undisturbed`.
    """
    import random

    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - tasks draw from the global generator
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _row(sample: Mapping[str, Any], name: str, task: Any, settings: Settings) -> dict[str, Any]:
    """What is kept of an item: hashes that pair it, its answer, its score, and the slices that it belongs to."""
    doc, kind = sample["doc"], task.OUTPUT_TYPE
    metric = _metric(sample, settings.metric, name)
    choices = task.doc_to_choice(doc) if kind == "multiple_choice" else None
    responses = sample["filtered_resps"]
    return {
        "task": name,
        "filter": sample["filter"],
        "doc_id": sample["doc_id"],
        "doc_hash": sample["doc_hash"],
        "prompt_hash": sample["prompt_hash"],
        "prompt": str(doc.get("prompt") or sample["arguments"][0][0]),
        "target": _target(sample["target"], choices),
        "answer": _answer(responses, choices, metric),
        "reply": _text(sample["resps"][0][0]) if kind == "generate_until" else None,
        "metric": metric,
        "score": None if metric is None else float(sample[metric]),
        "options": 0 if choices is None else len(choices),
        "category": _field(doc, CATEGORY_FIELDS) or name,
        "cluster": _field(doc, (settings.cluster_by,) if settings.cluster_by else CLUSTER_FIELDS),
        "expect": doc.get("expect"),
    }


def _metric(sample: Mapping[str, Any], wanted: str | None, task: str) -> str | None:
    """The metric that is the score: asked for, or the first that is a number between 0 and 1."""
    if "bypass" in sample["metrics"]:
        return None
    numbers = [m for m in sample["metrics"] if isinstance(sample[m], int | float) and 0 <= sample[m] <= 1]
    if wanted is not None and wanted in sample["metrics"]:
        if wanted not in numbers:
            raise UsageError(f"metric '{wanted}' of task {task}: an item's value is not between 0 and 1")
        return wanted
    if wanted is not None:
        raise UsageError(f"task {task}: no metric '{wanted}'; {did_you_mean(wanted, sample['metrics'])}")
    if not numbers:
        listed = ", ".join(sample["metrics"])
        raise UsageError(f"task {task}: no metric of single items between 0 and 1 (it has {listed})")
    return str(numbers[0])


def _answer(responses: Sequence[Any], choices: Sequence[str] | None, metric: str | None) -> str:
    """The chosen option, by the rule of the metric, or the filtered reply."""
    if choices is None:
        return _text(responses[0])
    scores = [float(response[0]) for response in responses[: len(choices)]]
    if metric == "acc_norm":
        scores = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
    best = max(range(len(scores)), key=scores.__getitem__)
    return str(choices[best])


def _target(target: Any, choices: Sequence[str] | None) -> Any:
    if isinstance(target, list | tuple):
        return _target(target[0], choices) if len(target) == 1 else [_target(one, choices) for one in target]
    inside = choices is not None and isinstance(target, int) and 0 <= target < len(choices)
    return str(choices[target] if inside and choices is not None else target)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else str(value)


def _field(doc: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((str(doc[name]) for name in names if doc.get(name) not in (None, "")), "")


def quiet() -> None:
    """Keep the libraries' advice off the terminal; lm-eval's own progress bars stay, on standard error."""
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("lm_eval", "lm-eval", "datasets", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.suppress(ImportError):
        import datasets
        from transformers.utils import logging as transformers_logging

        datasets.disable_progress_bars()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextlib.contextmanager
def console() -> Iterator[None]:
    """Standard output is the command's own; lm-eval's progress bars go to a terminal and to nothing else."""
    with Path(os.devnull).open("w") as nowhere:
        bars = sys.stderr if sys.stderr.isatty() else nowhere
        with contextlib.redirect_stdout(sys.stderr), contextlib.redirect_stderr(bars):
            yield


def default_batch(model: Any) -> int:
    """Items a forward pass: many for a model so small that its arrays are; few where memory may be short."""
    return 256 if sum(p.numel() for p in model.parameters()) < 50_000_000 else 16


@contextlib.contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """The base of a PeftModel; any other model as it is."""
    from ..models.adapters import as_base

    with as_base(model):
        yield


def _first_line(error: BaseException) -> str:
    return (str(error).strip("'\" \n").splitlines() or [type(error).__name__])[0][:300]

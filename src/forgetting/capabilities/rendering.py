"""Renders the requests of tasks, which the models are shown, before any model is asked; and hashes them."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from ..data import templates
from ..errors import ForgettingError, UsageError, did_you_mean
from . import metrics
from .console import console
from .explain import explained, where_raised
from .settings import Settings
from .tasks import as_it_is_now

DAY = datetime.date(2024, 7, 26)
"""The date given to chat templates that write today's date; it is the default of Llama's templates."""


def prepare(loaded: Mapping[str, Any], tokenizer: Any, settings: Settings) -> None:
    """Render every request of every task, once for both models.

    Raises:
        UsageError: a template fails, an item lacks a field, or there are no items; names task and item.
    """
    chat = tokenizer.chat_template is not None if settings.chat is None else settings.chat
    if chat and tokenizer.chat_template is None:
        raise UsageError("chat: the tokenizer has no chat template; leave chat (--chat) out")
    for name, task in loaded["tasks"].items():
        metrics.check_wanted(name, task, settings.metric)
        _settle(task, settings)
        try:
            with console(), as_it_is_now():
                task.build_all_requests(
                    limit=settings.limit,
                    rank=0,
                    world_size=1,
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat,
                    chat_template=chat_template(tokenizer) if chat else None,
                )
                metrics.check_options(name, task, settings.limit)
        except (MemoryError, ForgettingError):
            raise
        except Exception as error:
            at = _failing_item(task, settings.limit)
            raise UsageError(f"task {name}{at}: cannot be rendered: {explained(error)}{where_raised(error)}") from None
        _check_requests(name, task)
        _check_field(name, task, settings.cluster_by)


def _settle(task: Any, settings: Settings) -> None:
    """Set few-shot examples like lm-eval's `simple_evaluate`; they are the same for each model."""
    default = task.get_config("num_fewshot")
    if settings.fewshot is not None and default != 0:
        task.set_config(key="num_fewshot", value=settings.fewshot)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=settings.seed)


def _failing_item(task: Any, limit: int | None) -> str:
    """The item that cannot be rendered, if it can be found."""
    parts = [task.doc_to_text, task.doc_to_target]
    if task.OUTPUT_TYPE == "multiple_choice":
        parts.append(task.doc_to_choice)
    with contextlib.suppress(Exception):
        for number, doc in task.doc_iterator(limit=limit, rank=0, world_size=1):
            for part in parts:
                try:
                    part(doc)
                except Exception:
                    return f", item {number}"
    return ""


def _check_requests(name: str, task: Any) -> None:
    """Refuse requests with which lm-eval's wrapper of the model would fail."""
    for instance in task.instances:
        texts = instance.args if "loglikelihood" in instance.request_type else instance.args[:1]
        for text in texts:
            if not isinstance(text, str):
                raise UsageError(f"task {name}, item {instance.doc_id}: rendered to {text!r:.60}, which is not text")
        if instance.request_type == "loglikelihood" and not instance.args[1]:
            raise UsageError(f"task {name}, item {instance.doc_id}: the text to be scored is empty")


def _check_field(name: str, task: Any, wanted: str | None) -> None:
    """Refuse a `cluster_by` field that the items do not have."""
    doc = task.instances[0].doc
    if wanted is not None and isinstance(doc, Mapping) and wanted not in doc:
        raise UsageError(f"cluster_by: the items of task {name} have no field '{wanted}'; {did_you_mean(wanted, doc)}")


def items_of(task: Any) -> dict[int, list[Any]]:
    """The requests of each item, by the item's number."""
    found: dict[int, list[Any]] = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, []).append(instance)
    for requests in found.values():
        requests.sort(key=lambda request: request.idx)
    return found


def request_hash(requests: Sequence[Any], tokenizer_key: str) -> str:
    """A hash of everything that a model is shown for an item; if it is unchanged, the model need not be asked again."""
    shown = [[r.request_type, r.repeats, *r.args] for r in requests]
    text = json.dumps([tokenizer_key, shown], sort_keys=True, default=repr)
    return sha256(text.encode()).hexdigest()[:32]


def tokenizer_key(tokenizer: Any) -> str:
    """A hash of the tokenizer, except for its padding and truncation."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is not None:
        content = {k: v for k, v in json.loads(inner.to_str()).items() if k not in ("truncation", "padding")}
    else:
        content = tokenizer.get_vocab()
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    # both contents include added tokens; `add_bos_token` is part of the post-processor
    text = json.dumps([type(tokenizer).__name__, named, content], sort_keys=True, default=repr)
    return sha256(text.encode()).hexdigest()[:16]


def chat_template(tokenizer: Any) -> Callable[..., str]:
    """A function that renders messages as a prompt, like lm-eval's Hugging Face wrapper.

    If the template fails with system messages, they are left out. A template that writes today's date is given `DAY`,
    so that prompts do not change from day to day. The function raises a UsageError if the template fails.
    """
    from jinja2 import TemplateError

    template = dated(tokenizer.chat_template) if isinstance(tokenizer.chat_template, str) else None

    def render(messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        where = "chat template: it"
        with templates.bounded(where):
            text = tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        return templates.checked(str(text), where)

    def call(messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        try:
            try:
                return render(messages, add_generation_prompt=add_generation_prompt)
            except TemplateError:
                rest = [message for message in messages if message["role"] != "system"]
                if len(rest) == len(messages):
                    raise
                return render(rest, add_generation_prompt=add_generation_prompt)
        except (MemoryError, templates.TemplateLimitError):
            raise
        except Exception as error:
            raise UsageError(
                f"chat template: it cannot render a request: {explained(error)}; see chat=False (--no-chat)"
            ) from None

    return call


def dated(template: str) -> str:
    """A chat template with the date of `DAY` in place of today's.

    Examples:
        >>> dated("Today: {{ strftime_now('%d %b %Y') }}")
        'Today: {{ "26 Jul 2024" }}'
    """
    return re.sub(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda m: json.dumps(DAY.strftime(m[2])), template)

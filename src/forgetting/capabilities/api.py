"""`evaluate`: the Python function behind the command of the same name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config.arguments import checked, model_of, wrong_type
from ..config.schema import ModelConfig, validated
from ..errors import UsageError
from . import evaluate as asking
from .evaluate import Evaluation
from .items import MAX_GENERATED
from .judges import Judge, Labels, ModelJudge
from .relearn import relearn as probe
from .served import ServedSubject, Server
from .settings import Settings
from .suites import Plan

if TYPE_CHECKING:
    from ..models.pair import Model


@checked
def evaluate(
    base: Model | None,
    tuned: Model,
    *,
    suites: str | Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    fewshot: int | None = None,
    chat: bool | None = None,
    metric: str | None = None,
    cluster_by: str | None = None,
    max_new_tokens: int = MAX_GENERATED,
    include_path: str | Sequence[str] = (),
    harmful: str | os.PathLike[str] | None = None,
    harmless: str | os.PathLike[str] | None = None,
    keep_completions: bool = False,
    judge: str | Judge | None = None,
    labels: str | os.PathLike[str] | None = None,
    relearn: bool = False,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    bits: Literal[4, 8] | None = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
    server: Server | None = None,
    tell: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure what the tuned model lost of its base's knowledge, reasoning and guardrails, item by item.

    Args:
        base: a folder, Hub id, `miniature`, a loaded model, or None for the base of a loaded PeftModel.
        tuned: a PEFT adapter or full model, by folder or Hub id, or a loaded one.
        suites: `knowledge`, `reasoning`, `safety` (default: all that can be asked); .jsonl items; lm-eval YAML, tasks.
        out: folder in which answers are stored and reused (of loaded models only stored); None stores nothing.
        limit, batch_size, fewshot: items per task, items per forward pass, and examples before each item.
        chat: apply the chat template; default: if the model has one.
        metric, cluster_by: lm-eval's metric to use as an item's score; field of an item that identifies its passage.
        max_new_tokens, include_path: maximum tokens of a reply to a local item; folders with tasks for lm-eval.
        harmful, harmless: prompts of `safety`: a .csv, .txt or .jsonl, or Hub id; keep_completions stores the replies.
        judge, labels: the judge of refusals, a model's name or a `Judge`; or a CSV of hand labels. Default: rules.
        relearn: also train on half of each suite and score the other half, to tell lost from unreachable knowledge.
        revision, dtype, device, bits, trust_remote_code: settings for loading models; 4 or 8 bits quantise them.
        tokenizer: tokenizer of loaded models.
        server: settings for served models; base and tuned are then addresses of OpenAI-compatible servers.
        tell: called with the name of what is being run.

    Raises:
        UsageError: suites, items or models are wrong, or `out` has answers of other models or settings.
    """
    settings = Settings(limit, batch_size, chat, fewshot, metric=metric, cluster_by=cluster_by)
    prompts = (_text(harmful), _text(harmless), keep_completions)
    plan = Plan(_texts(suites), settings, *prompts, max_new_tokens, _texts(include_path))
    model = _model_config(relearn, fewshot, revision, dtype, device, bits, trust_remote_code)
    models = (model_of("base", base, optional=True), model_of("tuned", tuned))
    how: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "tell": tell}
    folder, served = None if out is None else Path(out), _served(*models, server, relearn, batch_size, model)
    found = asking.evaluate(*models, plan=plan, out=folder, judge=_judge(judge, labels), served=served, **how)
    return replace(found, relearned=probe(*models, found.rows, plan=plan, **how)) if relearn else found


def _served(
    base: Any, tuned: Any, server: Server | None, relearn: bool, batch_size: int | None, model: ModelConfig
) -> ServedSubject | None:
    """The served models; None without a server.

    Raises:
        UsageError: an argument that cannot be combined with served models; see also `ServedSubject`.
    """
    if server is None:
        return None
    if not isinstance(server, Server):
        raise wrong_type("server", server, "None, or a forgetting.Server")
    if relearn:
        raise UsageError("relearn (--relearn): not for served models, because their weights are not available here")
    if given := sorted(_other_than_default(model)):
        raise UsageError(f"{given[0]}: not for served models: the server has loaded them")
    if not (isinstance(base, str) and isinstance(tuned, str)):
        raise UsageError("base, tuned: with server both are addresses, such as http://localhost:8000/v1")
    return ServedSubject((base, tuned), server, batch_size)


def _other_than_default(model: ModelConfig) -> set[str]:
    """Fields that differ from their defaults."""
    plain = ModelConfig(source=model.source)
    return {name for name in type(model).model_fields if getattr(model, name) != getattr(plain, name)}


def _model_config(relearn: bool, fewshot: int | None, *given: Any) -> ModelConfig:
    fields = dict(zip(("revision", "dtype", "device", "bits", "trust_remote_code"), given, strict=True))
    model = validated(ModelConfig, {"source": "-", **fields}, "evaluate")
    if relearn and fewshot:
        raise UsageError("relearn (--relearn): does not work with fewshot: its prompts have no examples")
    if relearn and model.bits is not None:
        raise UsageError(
            f"relearn (--relearn): does not work with bits {model.bits}: an adapter that is merged into "
            "quantised weights is rounded with them"
        )
    return model


def _judge(judge: Any, labels: str | os.PathLike[str] | None) -> Judge | None:
    if judge is not None and labels is not None:
        raise UsageError("judge, labels: give only one of them")
    if labels is not None:
        return Labels(Path(labels))
    if judge is None or hasattr(judge, "verdicts"):
        found: Judge | None = judge
        return found
    if not isinstance(judge, str):
        raise wrong_type("judge", judge, "a model's name, a judge")
    return ModelJudge(judge)


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)

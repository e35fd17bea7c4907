"""Probes: the base model answers prompts, and its answers are a text to measure on.

Answers are cached as JSON lines next to the base targets; the key covers the model, the prompts' tokens and the
settings.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from ..config.schema import ProbeConfig
from ..data import array_cache
from ..data.probes import Ids, Prompt, answer_windows, dump_answers, encode_prompts, load_answers, prompts_and_notices
from ..data.windows import Windows
from ..display.numbers import several, share_of
from ..errors import UsageError
from ..files import no_room, write_atomically
from ..models import adapters
from ..models.generation import end_tokens, generate

log = logging.getLogger(__name__)
FORMAT = 1
"""To be increased whenever answers change; older cached answers are then not used."""
BATCH = {"cpu": 16}
LARGER_BATCH = 64
"""Number of prompts answered at once: on a CPU, and on other devices."""
SLOW = 20.0
"""Seconds above which the time taken to answer is reported."""


def probe_windows(
    model: Any, tokenizer: Any, config: ProbeConfig, *, key: str | None, context: int, cache_dir: Path | None
) -> Windows:
    """The base model's answers as windows: one per prompt, with the answer's tokens as targets.

    Empty rows, copies of prompts, prompts that leave no room for an answer in the context, and empty answers are left
    out; the windows' notices count them, and the answers that were cut off.

    Args:
        model: the base model, or a PeftModel around it.
        tokenizer: the base model's tokenizer.
        config: prompts and settings.
        key: identifies everything that affects the model's numbers; None caches nothing.
        context: maximum number of tokens of a prompt and its answer.
        cache_dir: where answers are cached; None caches nothing.

    Raises:
        UsageError: no tokenizer, prompts that cannot be read, or no prompt or answer is left.
        ForgettingError: memory is too small for one prompt.
    """
    if tokenizer is None:
        raise UsageError("loaded models need tokenizer=..., to encode the prompts")
    prompts, notices = prompts_and_notices(config)
    made = windows_of(model, tokenizer, config, prompts, key=key, context=context, cache_dir=cache_dir)
    return replace(made, notices=(*notices, *made.notices))


def windows_of(
    model: Any,
    tokenizer: Any,
    config: ProbeConfig,
    prompts: Sequence[Prompt],
    *,
    key: str | None,
    context: int,
    cache_dir: Path | None,
    cut_is_told: bool = True,
) -> Windows:
    """Like `probe_windows`, for prompts already read; notices count answers that were cut only if `cut_is_told`."""
    ids, notices = encode_prompts(prompts, tokenizer)
    most = config.answer_tokens(context)
    room = context - most
    fits = [i for i, prompt in enumerate(ids) if 0 < len(prompt) <= room]
    if room <= 0:
        raise UsageError(
            f"{config.source}: an answer of {several(most, 'token')} does not fit a context of {context}; lower "
            "--probe-tokens (max_new_tokens)"
        )
    if len(fits) < len(prompts):
        notices.append(
            f"{share_of(len(prompts) - len(fits), len(prompts), 'prompt', 'is')} left out: longer than the "
            f"{several(room, 'token')} that answers of {most} leave in a context of {context}"
        )
    if not fits:
        raise UsageError(
            f"{config.source}: no prompt is short enough: answers of {several(most, 'token')} leave {room} in a "
            f"context of {context}; lower --probe-tokens (max_new_tokens), or give a larger context"
        )
    chosen = [prompts[i] for i in fits]
    asked = [ids[i] for i in fits]
    inner = adapters.unwrapped(model)
    config = config.model_copy(update={"max_new_tokens": most})
    answers = _answers(inner, tokenizer, chosen, asked, config, key, cache_dir)
    return _windows(inner, tokenizer, config, chosen, asked, answers, notices, cut_is_told=cut_is_told)


def _windows(
    model: Any,
    tokenizer: Any,
    config: ProbeConfig,
    prompts: Sequence[Prompt],
    asked: Sequence[Ids],
    answers: Sequence[Ids],
    notices: list[str],
    *,
    cut_is_told: bool,
) -> Windows:
    """Windows of the answers that are not empty, with notices on the others."""
    ends = set(end_tokens(model, tokenizer))
    said = [i for i, answer in enumerate(answers) if any(int(token) not in ends for token in answer)]
    if len(said) < len(answers):
        notices.append(f"{share_of(len(answers) - len(said), len(answers), 'answer', 'is')} empty and left out")
    if not said:
        raise UsageError(
            f"{config.source}: the base model gives only empty answers to {several(len(answers), 'prompt')}"
        )
    cut = sum(int(answers[i][-1]) not in ends for i in said)
    if cut and cut_is_told:
        most = several(config.max_new_tokens or 0, "token")
        notices.append(f"{share_of(cut, len(answers), 'answer', 'was')} cut at {most}")
    if len(said) == 1:
        notices.append("one answer, so no standard error can be given; give more prompts")
    made = answer_windows([asked[i] for i in said], [answers[i] for i in said], [prompts[i].id for i in said])
    return replace(made, notices=tuple(notices))


def _answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    asked: Sequence[Ids],
    config: ProbeConfig,
    key: str | None,
    cache_dir: Path | None,
) -> list[Ids]:
    """The answers to the prompts, from the cache if it has them; of two processes, one generates and one waits."""
    device = next(model.parameters()).device.type
    ends, batch = end_tokens(model, tokenizer), BATCH.get(device, LARGER_BATCH)
    how: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
    how |= {"seed": config.seed, "ends": ends, "batch": batch}

    def write() -> list[Ids]:
        began = time.perf_counter()
        found = generate(model, asked, **how)
        if (seconds := time.perf_counter() - began) > SLOW:
            log.warning("%d answers were written in %.0f s", len(found), seconds)
        return found

    folder = None if key is None else array_cache.usable(cache_dir)
    if folder is None:
        return write()
    content = [FORMAT, key, device, torch.__version__, transformers.__version__, how, [p.tolist() for p in asked]]
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path = folder / f"answers-{fingerprint[:32]}.jsonl"
    with array_cache.held(path):
        stored = load_answers(path, fingerprint)
        if stored is not None and len(stored) == len(asked):
            return stored
        found = write()
        rows = [
            {
                "id": prompt.id,
                "kind": prompt.kind,
                "prompt": prompt.text,
                "answer": tokenizer.decode(answer.tolist()),
                "prompt_ids": mine.tolist(),
                "answer_ids": answer.tolist(),
            }
            for prompt, mine, answer in zip(prompts, asked, found, strict=True)
        ]
        try:
            write_atomically(path, dump_answers(fingerprint, rows), parents=False)
        except OSError as error:
            if not no_room(error):
                raise
            log.warning("%s: the disk is full; the answers are not cached", folder)
    return found

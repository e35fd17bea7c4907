"""Forgetting of the base model's own answers, measured along with a text if the base model has a chat template."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np

from ..config.schema import ProbeConfig
from ..data.probes import BESIDE_TOKENS, beside, kinds_of, source_beside
from ..errors import ForgettingError
from ..models import comparable, pair
from .measurement import Measurement, Settings
from .one_text import measurement_of, token_values
from .probes import windows_of
from .reading import window_length
from .sampling import Sampled

log = logging.getLogger(__name__)


def own_answers(models: pair.Pair, settings: Settings) -> dict[str, Measurement]:
    """Measure forgetting of the base model's own answers, by kind of prompt; empty if it has no chat template.

    The prompts are always the same 48, and the answers are greedy and at most 64 tokens long, so they depend only on
    the base model and how it is loaded. If the base model cannot answer, this is logged as a warning.

    Args:
        models: the loaded models.
        settings: the settings of the text that is measured; context, tolerance and noise floor are not used.
    """
    if not getattr(models.tokenizer, "chat_template", None):
        return {}
    try:
        return _measured(models, replace(settings, context=None, tolerance=None, noise_floor=False))
    except ForgettingError as error:
        log.warning("the base model's own answers are not measured: %s; --no-probe (probes=False) skips them", error)
        return {}


def _measured(models: pair.Pair, settings: Settings) -> dict[str, Measurement]:
    source = source_beside(models.names[0])
    prompts = beside(source)
    config = ProbeConfig(probe=source, max_new_tokens=BESIDE_TOKENS)
    length = window_length((models.base, models.tuned), None)
    began = time.perf_counter()
    windows = windows_of(
        models.base,
        models.tokenizer,
        config.model_copy(update={"max_new_tokens": min(BESIDE_TOKENS, config.answer_tokens(length), length // 2)}),
        prompts,
        key=models.key,
        context=length,
        cache_dir=settings.cache_dir,
        cut_is_told=False,
    )
    log.warning(
        "the base model has a chat template: forgetting of its own answers to %d prompts is measured, too; "
        "--no-probe (probes=False) skips them",
        len(prompts),
    )
    rows, notices = comparable.shared_rows(models.base, models.tuned, windows.largest)
    size = settings.batch_tokens
    assert size is not None
    values = token_values(models, windows, settings.cache_dir, size, rows)
    kind_of = {prompt.id: prompt.kind for prompt in prompts}
    kinds = np.array([kind_of[windows.document_ids[i]] for i in windows.documents])
    of_token = np.repeat(kinds, windows.lengths)[windows.predicted]
    told = tuple(dict.fromkeys([*windows.notices, *notices]))
    found = {}
    for kind in kinds_of(prompts):
        part = windows.select(np.flatnonzero(kinds == kind))
        if not part.n_predicted:
            continue
        sampled = Sampled(part, {name: value[of_token == kind] for name, value in values.items()}, complete=True)
        name = config.model_copy(update={"kind": kind}).source
        found[kind] = measurement_of(models, name, length, settings, sampled, None, told, began, part)
    return found

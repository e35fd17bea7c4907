"""Generates a model's answers: greedy or sampled text, for many prompts at once with padding on the left.

Of the model's own generation settings, only the tokens that end its turns are used: no penalties, temperatures, beams.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ForgettingError
from . import adapters, failures, sharding

log = logging.getLogger(__name__)
Ids = NDArray[np.int32]
PADDED = 0.05
"""Mean difference of logits, in their standard deviations, above which padding is taken to change answers."""


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the tokenizer's end token, and those in the model's settings."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = named if isinstance(named, list | tuple) else [named]
    found = [*named, getattr(tokenizer, "eos_token_id", None)]
    return sorted({int(token) for token in found if isinstance(token, int) and token >= 0})


LIMITS = ("max_new_tokens", "min_new_tokens", "min_length", "max_time", "stop_strings", "num_return_sequences")
"""Generation settings of a model that affect how much is generated and take precedence over a call's `max_length`."""
NEVER = (*LIMITS, "max_length", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff")
"""Generation settings that do not affect greedy answers whose length is given."""


@contextmanager
def length_as_asked(model: Any) -> Iterator[None]:
    """Inside, the model's own generation settings contain no length limit; its penalties and end tokens stay.

    lm-eval sets the length by `max_length`, and transformers prefers a `max_new_tokens` in the model's own settings.
    """
    settings = getattr(model, "generation_config", None)
    before = {name: getattr(settings, name) for name in LIMITS if getattr(settings, name, None) is not None}
    for name in before:
        setattr(settings, name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


def differing_settings(base: Any, tuned: Any) -> list[str]:
    """A notice if two models' own generation settings differ in ways that change greedy answers."""
    ours, theirs = (_own(model) for model in (base, tuned))
    names = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    if not names:
        return []
    values = "; ".join(f"{name}: {ours.get(name)!r:.40} and {theirs.get(name)!r:.40}" for name in names[:4])
    return [f"generation settings of the base and the tuned model differ, which changes answers ({values})"]


def _own(model: Any) -> dict[str, Any]:
    """The settings that differ from transformers' defaults and affect greedy answers."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return {}
    skipped = (*NEVER, "transformers_version", "pad_token_id", "bos_token_id", "use_cache")
    found = settings.to_diff_dict()
    return {name: value for name, value in found.items() if name not in skipped and not name.startswith("_")}


def generate(
    model: Any,
    prompts: Sequence[Ids],
    *,
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 32,
) -> list[Ids]:
    """The answer to each prompt, including the token that ends it, if any; adapters are disabled.

    Args:
        model: a causal language model, or a PeftModel around one; it is left unchanged.
        prompts: [n] tokens of each; none is empty.
        ends: tokens that end an answer.
        max_new_tokens: maximum tokens of an answer.
        temperature: 0 takes the most likely token. Above 0, a prompt's answer depends on the seed and its index, not on
            its batch: random numbers are drawn for each prompt (Gumbel noise on the logits).
        seed: seed of the sampling.
        batch: prompts at once; halved if memory runs out.

    Raises:
        ForgettingError: memory is too small for one prompt, the weights are sharded over processes, or the model cannot
            generate.
    """
    if sharding.is_sharded(model):
        raise ForgettingError("the base model's weights are sharded over processes, so it cannot generate answers")
    found: dict[int, Ids] = {}
    with adapters.undisturbed(model), adapters.as_base(model):
        inner = model.get_base_model() if adapters.is_peft(model) else model
        try:
            with only_settings(inner, **_greedy(ends, max_new_tokens)):
                found = _all_written(inner, prompts, ends, max_new_tokens, temperature, seed, batch)
        except ForgettingError:
            raise
        except Exception as error:  # the code of a model may raise anything
            why = " ".join(str(error).split())[:200]
            raise ForgettingError(
                f"the base model cannot generate answers: its generate() fails with {type(error).__name__}: {why}"
            ) from error
    return [found[i] for i in range(len(prompts))]


def _all_written(
    model: Any,
    prompts: Sequence[Ids],
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch: int,
) -> dict[int, Ids]:
    """The answer to each prompt, by its index; fewer at once if memory runs out."""
    found: dict[int, Ids] = {}
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    if batch > 1 and len(order) > 1 and not _batches_as_alone(model, prompts[order[0]], prompts[order[-1]]):
        log.warning("prompts are answered one at a time: in a padded batch this model gives other answers")
        batch = 1
    while order:
        chosen = order[:batch]
        noise = _Gumbel(temperature, seed, chosen) if temperature > 0 else None
        try:
            written = _written(model, [prompts[i] for i in chosen], noise)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not failures.out_of_memory(error):
                raise
            if len(chosen) == 1:
                raise ForgettingError(
                    f"out of memory: one prompt of {len(prompts[chosen[0]])} tokens with an answer of "
                    f"{max_new_tokens}; give fewer max_new_tokens"
                ) from error
        else:
            found |= zip(chosen, (_until_end(ids, ends) for ids in written), strict=True)
            order = order[len(chosen) :]
            continue
        batch = max(1, len(chosen) // 2)
        log.warning("out of memory: generating again with %d answers at once", batch)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found


def _batches_as_alone(model: Any, short: Ids, long: Ids) -> bool:
    """Whether two prompts of different lengths give the same logits in one batch as each gives alone, at two steps.

    Models with a recurrent state may read the padding into it, or keep one state for all prompts of a batch: seen with
    RWKV, RecurrentGemma and MiniMax in transformers 5. Rounding in half precision is far below the bound.
    """
    together = _two_steps(model, [short, long])
    for row, prompt in enumerate((short, long)):
        for alone, beside in zip(_two_steps(model, [prompt]), together, strict=True):
            one, other = alone[0], beside[row]
            known = torch.isfinite(one) & torch.isfinite(other)
            if float((one - other)[known].abs().mean()) > PADDED * float(one[known].std()):
                return False
            if int(one.argmax()) != int(other.argmax()):
                break  # the next step continues another text
    return True


def _two_steps(model: Any, prompts: Sequence[Ids]) -> list[torch.Tensor]:
    """[B, V] logits of the first two tokens after each prompt; end tokens are suppressed, so there are always two."""
    tokens, mask = _padded(prompts, model.get_input_embeddings().weight.device)
    how = {"max_new_tokens": 2, "min_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True}
    return [step.float() for step in model.generate(input_ids=tokens, attention_mask=mask, **how).logits]


@contextmanager
def only_settings(model: Any, **settings: Any) -> Iterator[None]:
    """Inside, a model generates with these settings only; transformers would take missing ones from the model's own."""
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig(**settings)
    try:
        yield
    finally:
        model.generation_config = before


def _greedy(ends: Sequence[int], max_new_tokens: int) -> dict[str, Any]:
    return {
        "do_sample": False,
        "num_beams": 1,
        "use_cache": True,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": list(ends) or None,
        "pad_token_id": ends[0] if ends else 0,
    }


def _written(model: Any, prompts: Sequence[Ids], noise: _Gumbel | None) -> Ids:
    """[B, G] tokens generated after each prompt; prompts are left-padded, and padding is masked."""
    from transformers import LogitsProcessorList

    tokens, mask = _padded(prompts, model.get_input_embeddings().weight.device)
    processors = LogitsProcessorList([] if noise is None else [noise])
    written = model.generate(input_ids=tokens, attention_mask=mask, logits_processor=processors)
    answers: Ids = written[:, tokens.shape[1] :].to(torch.int32).cpu().numpy()
    return answers


def _padded(prompts: Sequence[Ids], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, t] tokens with padding before them, and their mask."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, longest - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def _until_end(ids: Ids, ends: Sequence[int]) -> Ids:
    """A row up to and including its first end token; the rest is padding."""
    at = np.flatnonzero(np.isin(ids, np.asarray(ends, np.int32)))
    return ids[: at[0] + 1] if len(at) else ids


class _Gumbel:
    """A logits processor that makes the argmax a sample: argmax of logits / T + Gumbel noise.

    Source: Gumbel 1954; Maddison, Tarlow & Minka 2014, *A\\* Sampling*, arXiv:1411.0030.
    """

    def __init__(self, temperature: float, seed: int, places: Sequence[int]) -> None:
        self.temperature = temperature
        self.streams = [np.random.default_rng([seed, place]) for place in places]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """[B, V] scores with each prompt's next noise."""
        noise = np.stack([stream.gumbel(size=scores.shape[-1]) for stream in self.streams]).astype(np.float32)
        return scores.float() / self.temperature + torch.from_numpy(noise).to(scores.device)

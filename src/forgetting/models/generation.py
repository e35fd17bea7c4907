"""Generates a model's answers: greedy or sampled text, for many prompts at once with padding on the left.

The model's own generation settings (penalties, temperatures, beams) are not used, so the answer is the model's alone.
Only the tokens that end its turns are taken from them.
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


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the tokenizer's end token, and those in the model's settings."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = named if isinstance(named, list | tuple) else [named]
    found = [*named, getattr(tokenizer, "eos_token_id", None)]
    return sorted({int(token) for token in found if isinstance(token, int) and token >= 0})


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
        ForgettingError: memory is too small for one prompt, or the weights are sharded over processes.
    """
    if sharding.is_sharded(model):
        raise ForgettingError("the base model's weights are sharded over processes, so it cannot generate answers")
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    found: dict[int, Ids] = {}
    with adapters.undisturbed(model), adapters.as_base(model):
        inner = model.get_base_model() if adapters.is_peft(model) else model
        with _own_settings(inner, ends, max_new_tokens):
            while order:
                chosen = order[:batch]
                noise = _Gumbel(temperature, seed, chosen) if temperature > 0 else None
                try:
                    written = _written(inner, [prompts[i] for i in chosen], noise)
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
    return [found[i] for i in range(len(prompts))]


@contextmanager
def _own_settings(model: Any, ends: Sequence[int], max_new_tokens: int) -> Iterator[None]:
    """Inside, a model generates with these settings only; unset ones would be taken from its own."""
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
    )
    try:
        yield
    finally:
        model.generation_config = before


def _written(model: Any, prompts: Sequence[Ids], noise: _Gumbel | None) -> Ids:
    """[B, G] tokens generated after each prompt; prompts are left-padded, and padding is masked."""
    from transformers import LogitsProcessorList

    longest = max(len(prompt) for prompt in prompts)
    device = model.get_input_embeddings().weight.device
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, longest - len(prompt) :] = 1
    processors = LogitsProcessorList([] if noise is None else [noise])
    written = model.generate(input_ids=tokens.to(device), attention_mask=mask.to(device), logits_processor=processors)
    answers: Ids = written[:, longest:].to(torch.int32).cpu().numpy()
    return answers


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

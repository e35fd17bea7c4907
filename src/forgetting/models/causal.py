"""Tests whether a model is a left-to-right language model, by running it on two short texts that end differently."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from . import adapters, bitsandbytes_internals, failures, sharding

TOKENS = 16
FLOOR, FLOOR_HALF = 2e-7, 1e-4
"""Tolerance as a share of the largest logit, in float32 and in bfloat16 or float16; smaller changes are rounding."""
SHARE, SHARE_HALF = 1e-3, 0.05
"""If a model looks ahead, later tokens move its logits as much as earlier tokens do. In a model with experts, rounding
also moves them, because the tokens that share an expert change, but by far less than this share."""


def check_causal(model: Any, name: str) -> None:
    """Refuse a model whose logits at a position depend on later tokens, or that gives no logits for each position.

    Args:
        model: loaded, on its device; a PeftModel with its adapters as they are.
        name: the model, for messages.

    Raises:
        UsageError: not a left-to-right language model, or one that cannot be run.
        ForgettingError: memory ran out.
    """
    inner = model.get_base_model() if adapters.is_peft(model) else model
    kind = type(inner).__name__
    ids = plain_tokens(model)
    half = ids.shape[1] // 2
    later = torch.cat([ids[:, :half], ids[:, half:].roll(1, 1)], 1)
    earlier = torch.cat([ids[:, : half - 1], ids[:, -1:], ids[:, half:]], 1)
    alone = bitsandbytes_internals.rounded_by_token(model)
    with adapters.undisturbed(model), alone, failures.explained(name, "cannot be run"):
        first, second = _logits(model, ids), _logits(model, later)
        if first is None or second is None or first.shape[:2] != ids.shape:
            raise UsageError(
                f"{name}: {kind} does not give logits for each position of a text, as a language model does"
            )
        exact = inner.dtype in (torch.float32, torch.float64)
        floor = (FLOOR if exact else FLOOR_HALF) * float(first.float().abs().max())
        moved = _moved(first[:, :half], second[:, :half])
        if not moved > floor:
            return  # also if it is NaN, which the losses will show
        again, third = _logits(model, ids), _logits(model, earlier)
    if again is None or third is None:
        raise UsageError(f"{name}: {kind} gives logits for some texts but not for others")
    bound = (SHARE if exact else SHARE_HALF) * _moved(first[:, half:], third[:, half:])
    if moved <= bound:
        return
    if _moved(first, again) > bound:
        raise UsageError(
            f"{name}: {kind} gives different logits each time it reads the same text: it draws random numbers"
        )
    raise UsageError(
        f"{name}: {kind} is not a left-to-right language model: logits at a position depend on later tokens"
    )


def _moved(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def probe(model: Any, tokens: Tensor | None = None) -> Tensor:
    """[T, V] float32 logits of a model on [1, T] tokens (default: those of the check), on the CPU."""
    inner = model.get_base_model() if adapters.is_peft(model) else model
    with adapters.undisturbed(model):
        logits = _logits(model, plain_tokens(model) if tokens is None else tokens)
    if logits is None:
        raise UsageError(f"{type(inner).__name__} does not give logits for each position of a text")
    return logits[0].float().cpu()


def _logits(model: Any, ids: Tensor) -> Tensor | None:
    """[1, T, V], or None if the model returns something else."""
    entry = model if adapters.needs_whole_forward(model) or not adapters.is_peft(model) else model.get_base_model()
    logits = getattr(sharding.calling(model, entry)(input_ids=ids, use_cache=False), "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        return None
    return logits[:, -ids.shape[1] :] if entry is model and adapters.is_peft(model) else logits


def plain_tokens(model: Any) -> Tensor:
    """[1, T] tokens; none is a special token (image, padding or similar), and none activates an adapter."""
    inner = model.get_base_model() if adapters.is_peft(model) else model
    embedding = next(inner.get_input_embeddings().parameters())
    text = inner.config.get_text_config()
    special = {
        value
        for one in (inner.config, text)
        for key, value in one.to_dict().items()
        if key.endswith(("_id", "_index", "_token")) and isinstance(value, int)
    }
    special |= {token for tokens in adapters.invocations(model) for token in tokens}
    rows = min(embedding.shape[0], int(getattr(text, "vocab_size", None) or embedding.shape[0]))
    plain = [token for token in range(min(rows, 4 * TOKENS + len(special))) if token not in special]
    limit = getattr(text, "max_position_embeddings", None) or TOKENS
    length = min(TOKENS, limit) if limit > 1 else TOKENS  # XLNet's is -1: any length
    chosen = [plain[(7 * i + 3) % len(plain)] for i in range(length)]
    device = embedding.device if embedding.device.type != "meta" else torch.device("cpu")
    return torch.tensor([chosen], device=device)

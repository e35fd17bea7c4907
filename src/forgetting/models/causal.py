"""Whether a model is a left-to-right language model, asked of the model: two short texts that end differently."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from . import adapters, failures

TOKENS = 16
TOLERANCE = 1e-4
"""Of the largest logit: what positions may move by when only tokens after them change. A model that looks ahead moves
by far more; one with experts may move by rounding, since the tokens that share an expert are others."""
TOLERANCE_HALF = 1e-2
"""The same in bfloat16 and float16."""


def check_causal(model: Any, name: str) -> None:
    """Refuse a model whose logits at a position depend on the tokens after it, or that gives none for each position.

    Args:
        model: loaded, on its device; a PeftModel with its adapters as they are.
        name: for messages.

    Raises:
        UsageError: not a left-to-right language model, or one that cannot be run.
        ForgettingError: memory ran out.
    """
    inner = model.get_base_model() if adapters.is_peft(model) else model
    kind = type(inner).__name__
    ids = _tokens(inner)
    half = ids.shape[1] // 2
    other = torch.cat([ids[:, :half], ids[:, half:].roll(1, 1)], 1)
    with adapters.undisturbed(model), failures.explained(name, "cannot be run"):
        first, second = _logits(model, ids), _logits(model, other)
    if first is None or second is None or first.shape[:2] != ids.shape:
        raise UsageError(f"{name}: {kind} gives no logits for each position of a text, as a language model does")
    first, second = first[0, :half].float(), second[0, :half].float()
    bound = (TOLERANCE if inner.dtype in (torch.float32, torch.float64) else TOLERANCE_HALF) * first.abs().max()
    if not bool(first.isfinite().all()) or bool(((second - first).abs() <= bound).all()):
        return  # weights that are not finite are named by whoever reads the losses
    with adapters.undisturbed(model):
        again = _logits(model, ids)
    if again is None or bool(((again[0, :half].float() - first).abs() > bound).any()):
        raise UsageError(f"{name}: {kind} gives other logits each time it reads the same text: it draws random numbers")
    raise UsageError(
        f"{name}: {kind} is not a left-to-right language model: its logits at a position depend on the tokens after it"
    )


def probe(model: Any) -> Tensor:
    """[T, V] float32 logits of a model, as it is, on the tokens of the check, on the CPU."""
    inner = model.get_base_model() if adapters.is_peft(model) else model
    with adapters.undisturbed(model):
        logits = _logits(model, _tokens(inner))
    if logits is None:
        raise UsageError(f"{type(inner).__name__} gives no logits for each position of a text")
    return logits[0].float().cpu()


def _logits(model: Any, ids: Tensor) -> Tensor | None:
    """[1, T, V], or None where the model gives something else."""
    entry = model if adapters.needs_whole_forward(model) or not adapters.is_peft(model) else model.get_base_model()
    logits = getattr(entry(input_ids=ids, use_cache=False), "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        return None
    return logits[:, -ids.shape[1] :] if entry is model and adapters.is_peft(model) else logits


def _tokens(model: Any) -> Tensor:
    """[1, T] tokens, none of which stands for an image, padding or the like."""
    embedding = next(model.get_input_embeddings().parameters())
    text = model.config.get_text_config()
    special = {
        value
        for one in (model.config, text)
        for key, value in one.to_dict().items()
        if key.endswith(("_id", "_index", "_token")) and isinstance(value, int)
    }
    rows = min(embedding.shape[0], int(getattr(text, "vocab_size", None) or embedding.shape[0]))
    plain = [token for token in range(min(rows, 4 * TOKENS + len(special))) if token not in special]
    length = min(TOKENS, int(getattr(text, "max_position_embeddings", None) or TOKENS))
    chosen = [plain[(7 * i + 3) % len(plain)] for i in range(length)]
    device = embedding.device if embedding.device.type != "meta" else torch.device("cpu")
    return torch.tensor([chosen], device=device)

"""Runs a causal language model over windows and returns the hidden states of its predicted positions.

A pass changes nothing that training could see: it restores each module's training mode, the random states, and which
parameters require gradients.

Shapes: B windows of a batch, L their longest length, N predicted positions of a batch, D width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.windows import Windows
from ..errors import ForgettingError, UsageError
from ..models import adapters, failures, peft_internals, processes, sharding
from . import batches, heads

log = logging.getLogger(__name__)
PROBE_TOKENS = 8
R = TypeVar("R")


@dataclass(frozen=True)
class Runner:
    """How to get from a batch to the head's input: [B, L, D] hidden states, or [B, L, V] logits.

    `together`: the weights are sharded, so each process must run a batch whenever the others do.
    """

    run: Callable[[Tensor, Tensor | None], Tensor]
    head: heads.Head
    device: torch.device
    together: bool = False


def batch_size(model: Any, wanted: int | None) -> int:
    """Tokens per forward pass: as given, or 512 on a CPU (one window: least memory, not slower) and 8,192 elsewhere."""
    if wanted is not None:
        return wanted
    return 512 if next(model.parameters()).device.type == "cpu" else 8192


def check_windows(windows: Windows) -> None:
    """Refuse a text with nothing to measure, or a window whose first position is marked as predicted."""
    if not windows.n_predicted:
        raise UsageError("the text has no position to measure: every document is shorter than two tokens")
    starts = windows.offsets[:-1][windows.lengths > 0]
    if windows.predicted[starts].any():
        raise UsageError("the first position of a window has no context, so it cannot be predicted")


def runner(model: Any, windows: Windows) -> Runner:
    """Recognise how the model computes logits, verified on the first tokens of the text; see `heads`."""
    whole = adapters.needs_whole_forward(model)
    inner = model.get_base_model() if adapters.is_peft(model) else model
    device = next(inner.get_input_embeddings().parameters()).device
    device = device if device.type != "meta" else torch.device("cpu")
    first = int(np.argmax(windows.targets > 0))  # the windows before it may be empty
    probe = torch.from_numpy(windows.window(first)[0][:PROBE_TOKENS].astype(np.int64))[None].to(device)
    entry = sharding.calling(model, model if whole or sharding.is_sharded(model) else inner)
    together = sharding.is_sharded(model)

    def full(input_ids: Tensor, mask: Tensor | None) -> Tensor:
        # Adapters with virtual tokens put those positions first; the text's come last.
        mask = torch.ones_like(input_ids) if mask is None and whole else mask
        with _named(inner, input_ids):
            logits: Tensor = entry(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        return logits[:, -input_ids.shape[1] :]

    logits = full(probe, None)[0]
    if bool(logits.isnan().any()):  # no head can be recognised from NaN; the caller reports the NaN losses
        return Runner(full, heads.LogitsHead(logits.shape[-1]), device, together)
    found = None if whole else _by_head(model, inner, probe, logits)
    if found is not None:
        return Runner(*found, device, together)
    reason = f"{whole} need it" if whole else f"the head of {type(inner).__name__} is of an unknown kind"
    log.warning("measuring with full logits (%s), which is slower and needs more memory", reason)
    return Runner(full, heads.LogitsHead(logits.shape[-1]), device, together)


@contextmanager
def _named(model: Any, input_ids: Tensor) -> Iterator[None]:
    """Turn a library's error on a text into one of ours, except out-of-memory errors, which `halving` handles."""
    try:
        yield
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        if failures.out_of_memory(error):
            raise
        what = f"cannot be run on windows of {input_ids.shape[1]} tokens"
        raise UsageError(f"{type(model).__name__}: {what}: {failures.first_line(error)}") from None


def _by_head(
    model: Any, inner: Any, probe: Tensor, logits: Tensor
) -> tuple[Callable[[Tensor, Tensor | None], Tensor], heads.Head] | None:
    """The decoder's forward and its head, if together they reproduce the model's own logits on the probe."""
    decoder = _decoder(inner)
    if decoder is None:
        return None
    call = sharding.calling(model, decoder)

    def hidden(input_ids: Tensor, mask: Tensor | None) -> Tensor:
        with _named(inner, input_ids):
            output: Tensor = call(input_ids=input_ids, attention_mask=mask, use_cache=False)[0]
        return output

    state = hidden(probe, None)[0]
    for head in heads.candidates(inner):
        if heads.verified(head, state, logits):
            return hidden, _of_the_base(model, head) if adapters.disabled(model) else head
    return None


def _of_the_base(model: Any, head: heads.Head) -> heads.Head:
    """A head under a disabled adapter that stays the base's head when the adapter is enabled again."""
    if not isinstance(head, heads.CalledHead) or not peft_internals.adapted(head.module):
        return head
    call = head.module

    def module(hidden: Tensor) -> Tensor:
        with adapters.as_base(model):
            return call(hidden)

    return replace(head, module=module)


def _decoder(model: Any) -> Any:
    """The part below the head: transformers' get_decoder, else the base model by its prefix; None if there is none.

    It must contain the input embedding: in ModernBERT's decoder model, the part called decoder is the head.
    """
    embedding = model.get_input_embeddings()
    for found in (model.get_decoder() if hasattr(model, "get_decoder") else None, getattr(model, "base_model", None)):
        if found is not None and found is not model and any(part is embedding for part in found.modules()):
            return found
    return None


def hidden_states(
    run: Runner, windows: Windows, batch_tokens: int, shard: tuple[int, int] = (0, 1)
) -> Iterator[tuple[batches.Batch, Tensor]]:
    """Each batch with the [N, D] (or [N, V]) states of its predicted positions.

    Args:
        run: how to run the model.
        windows: the text.
        batch_tokens: tokens per forward pass.
        shard: (index, count) of processes: only every count-th batch, from the index on.
    """
    rank, ranks = shard
    planned = batches.plan(windows, batch_tokens)
    for place in range(rank, len(planned) + rank if run.together else len(planned), ranks):
        batch = batches.build(windows, planned[min(place, len(planned) - 1)])
        counts = place < len(planned) and len(batch.source) > 0
        # sharded weights: a process without batches still runs one, because the others need it
        if counts or run.together:
            states = states_of(run, batch)
        if counts:
            yield batch, states


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A numpy array on a device; on a GPU, without waiting for its current work."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Collected:
    """[N] numbers by name, kept on the computing device until all are there.

    Reading them after every batch would make a GPU wait for the CPU each time.
    """

    def __init__(self, positions: int, **dtypes: torch.dtype) -> None:
        self.positions, self.dtypes = positions, dtypes
        self.kept: dict[str, Tensor] = {}

    def put(self, place: NDArray[np.int64], **values: Tensor) -> None:
        """Set the numbers of the positions `place` [n] to `values` [n]."""
        for name, value in values.items():
            if name not in self.kept:
                self.kept[name] = torch.zeros(self.positions, dtype=self.dtypes[name], device=value.device)
            kept = self.kept[name]
            kept[to_device(place, kept.device)] = value.to(kept.dtype)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All numbers; zero at positions that were not set."""
        return {
            name: (self.kept[name] if name in self.kept else torch.zeros(self.positions, dtype=dtype)).cpu().numpy()
            for name, dtype in self.dtypes.items()
        }


def states_of(run: Runner, batch: batches.Batch) -> Tensor:
    """The [N, D] (or [N, V]) states of a batch's predicted positions."""
    ids = to_device(batch.input_ids, run.device)
    # Without padding, pass no mask: attention then uses its faster causal path.
    mask = None if batch.mask.all() else to_device(batch.mask.astype(np.int64), run.device)
    state = run.run(ids, mask)
    return state.reshape(-1, state.shape[-1])[to_device(batch.source, state.device)]


def halving(
    measure: Callable[[int], R], windows: Windows, batch_tokens: int, *, sharded: bool = False, together: bool = False
) -> R:
    """Call `measure(batch_tokens)`; each time memory runs out, halve the tokens and call again, with a notice.

    Args:
        measure: does the work, given the tokens of a batch.
        windows: what is measured on.
        batch_tokens: initial tokens.
        sharded: the batches are divided among processes. All halve if one must: shards with batches of different sizes
            would count some positions twice and others never.
        together: the model's weights are sharded, so that the others wait for this process and cannot start again.

    Raises:
        ForgettingError: one window does not fit; with `together`, a batch does not.
    """
    longest = int(windows.lengths.max())
    while True:
        error: Exception | None = None
        try:
            found = measure(batch_tokens)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as raised:
            if not failures.out_of_memory(raised):
                raise
            if together:
                raise ForgettingError(
                    f"out of memory: measuring sharded weights with {batch_tokens} tokens per forward pass; give fewer "
                    "(--batch-tokens, measure.batch_tokens)"
                ) from raised
            error = raised
        if not (processes.summed_one(error is not None) if sharded else error):
            return found
        if batch_tokens <= longest:
            raise ForgettingError(
                f"out of memory with a single window of {longest} tokens; use a smaller context (--context)"
            ) from error
        error = None  # it keeps alive the frames, and so the memory, of the failed pass
        batch_tokens = max(longest, batch_tokens // 2)
        log.warning("out of memory: measuring again with batches of %d tokens", batch_tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

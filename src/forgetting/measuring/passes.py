"""Run a causal language model over windows and hand out the hidden states of its predicted positions.

The pass changes nothing that training could see: the training mode of each module, the random states and which
parameters require gradients are restored.

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
    """How to get from a batch to what the head reads: [B, L, D] hidden states, or [B, L, V] logits.

    `together`: the weights are sharded, so that each process runs a batch whenever the others do.
    """

    run: Callable[[Tensor, Tensor | None], Tensor]
    head: heads.Head
    device: torch.device
    together: bool = False


def batch_size(model: Any, wanted: int | None) -> int:
    """Tokens a forward pass: as asked, else 512 on a CPU (one window: least memory, no slower) and 8,192 elsewhere."""
    if wanted is not None:
        return wanted
    return 512 if next(model.parameters()).device.type == "cpu" else 8192


def check_windows(windows: Windows) -> None:
    """Refuse a text with nothing to measure, and a window whose first position claims to be predicted."""
    if not windows.n_predicted:
        raise UsageError("the text has no position to measure: every document is shorter than two tokens")
    starts = windows.offsets[:-1][windows.lengths > 0]
    if windows.predicted[starts].any():
        raise UsageError("the first position of a window has nothing before it, so it cannot be predicted")


def runner(model: Any, windows: Windows) -> Runner:
    """Recognise how the model makes logits, verified on the first tokens of the text; see `heads`."""
    whole = adapters.needs_whole_forward(model)
    inner = model.get_base_model() if adapters.is_peft(model) else model
    device = next(inner.get_input_embeddings().parameters()).device
    device = device if device.type != "meta" else torch.device("cpu")
    probe = torch.from_numpy(windows.window(0)[0][:PROBE_TOKENS].astype(np.int64))[None].to(device)
    entry = sharding.calling(model, model if whole or sharding.is_sharded(model) else inner)
    together = sharding.is_sharded(model)

    def full(input_ids: Tensor, mask: Tensor | None) -> Tensor:
        # Adapters with virtual tokens put their positions first: the text's are the last.
        mask = torch.ones_like(input_ids) if mask is None and whole else mask
        with _named(inner, input_ids):
            logits: Tensor = entry(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        return logits[:, -input_ids.shape[1] :]

    logits = full(probe, None)[0]
    if bool(logits.isnan().any()):  # no head can be recognised from it; whoever reads the losses says what is wrong
        return Runner(full, heads.LogitsHead(logits.shape[-1]), device, together)
    found = None if whole else _by_head(model, inner, probe, logits)
    if found is not None:
        return Runner(*found, device, together)
    reason = f"{whole} need it" if whole else f"the head of {type(inner).__name__} is not one that is known"
    log.warning("measuring through full logits (%s): slower, and more memory", reason)
    return Runner(full, heads.LogitsHead(logits.shape[-1]), device, together)


@contextmanager
def _named(model: Any, input_ids: Tensor) -> Iterator[None]:
    """A library's error on a text as one of ours; not where memory ran out, which `halving` answers."""
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
    """The decoder's forward and its head, where together they give the model's own logits on the probe."""
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
    """A head that a disabled adapter stands on, for use when the adapter is enabled again: it stays the base's."""
    if not isinstance(head, heads.CalledHead) or not peft_internals.adapted(head.module):
        return head
    call = head.module

    def module(hidden: Tensor) -> Tensor:
        with adapters.as_base(model):
            return call(hidden)

    return replace(head, module=module)


def _decoder(model: Any) -> Any:
    """The part below the head: transformers' get_decoder, else the base model by its prefix; None if there is none.

    It is what holds the input embedding: what ModernBERT's decoder model calls its decoder is its head.
    """
    embedding = model.get_input_embeddings()
    for found in (model.get_decoder() if hasattr(model, "get_decoder") else None, getattr(model, "base_model", None)):
        if found is not None and found is not model and any(part is embedding for part in found.modules()):
            return found
    return None


def hidden_states(
    run: Runner, windows: Windows, batch_tokens: int, shard: tuple[int, int] = (0, 1)
) -> Iterator[tuple[batches.Batch, Tensor]]:
    """Each batch with the [N, D] (or [N, V]) states of its predicted positions; of `shard` (rank, ranks) only."""
    rank, ranks = shard
    planned = batches.plan(windows, batch_tokens)
    for place in range(rank, len(planned) + rank if run.together else len(planned), ranks):
        batch = batches.build(windows, planned[min(place, len(planned) - 1)])
        counts = place < len(planned) and len(batch.source) > 0
        if counts or run.together:  # sharded weights: whoever has no batch left runs one for the others' sake
            states = states_of(run, batch)
        if counts:
            yield batch, states


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A numpy array on a device; on a GPU, without waiting for what it is at work on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Collected:
    """[N] numbers by name, kept where they are computed until all are there.

    Read one batch after another they would make a GPU wait for the CPU each time.
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
        """All of them; zero where nothing was put."""
        return {
            name: (self.kept[name] if name in self.kept else torch.zeros(self.positions, dtype=dtype)).cpu().numpy()
            for name, dtype in self.dtypes.items()
        }


def states_of(run: Runner, batch: batches.Batch) -> Tensor:
    """The [N, D] (or [N, V]) states of a batch's predicted positions."""
    ids = to_device(batch.input_ids, run.device)
    # Without padding, no mask: attention then takes its faster causal path.
    mask = None if batch.mask.all() else to_device(batch.mask.astype(np.int64), run.device)
    state = run.run(ids, mask)
    return state.reshape(-1, state.shape[-1])[to_device(batch.source, state.device)]


def halving(
    measure: Callable[[int], R], windows: Windows, batch_tokens: int, *, sharded: bool = False, together: bool = False
) -> R:
    """Call `measure(batch_tokens)`, with half as many tokens again each time that memory runs out, with a notice.

    Args:
        measure: does the work, given the tokens of a batch.
        windows: what is measured on.
        batch_tokens: to begin with.
        sharded: the batches are shared out among processes. All halve where one must: shards of batches of different
            sizes would count some positions twice and others never.
        together: the model's weights are sharded, so that the others wait for this process's part of them and cannot
            begin again.

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
                    f"out of memory: measuring sharded weights with {batch_tokens} tokens a forward pass; give fewer "
                    "(--batch-tokens, measure.batch_tokens)"
                ) from raised
            error = raised
        if not (processes.summed_one(error is not None) if sharded else error):
            return found
        if batch_tokens <= longest:
            raise ForgettingError(
                f"out of memory with a single window of {longest} tokens; use a smaller context (--context)"
            ) from error
        error = None  # it holds the frames, and so the memory, of the pass that failed
        batch_tokens = max(longest, batch_tokens // 2)
        log.warning("out of memory: measuring again with batches of %d tokens", batch_tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

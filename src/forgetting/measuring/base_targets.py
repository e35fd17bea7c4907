"""The base model's side of a comparison: computed once, cached under a content key, memory-mapped.

Only what is needed of the base model's distribution is stored: 16 bytes per token. Its log-probabilities over a
vocabulary of 32,000 would take 64 kB per token (in bfloat16).

Shapes: N = windows.n_predicted, in the order of the windows; D width of the hidden states.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from ..data import array_cache
from ..data.windows import Windows
from ..files import no_room
from ..models import adapters, memory, processes, sharding
from . import heads, kernels, passes

log = logging.getLogger(__name__)
FORMAT = 1
"""Raised when the meaning of the stored numbers changes, so that older files are recomputed."""
ROWS_LIMIT = 2**30
"""Maximum bytes of expected rows on disk for one text; above it, the soft losses run the base model a second time."""
MEMORY_LIMIT = 2**26
"""The same limit without a cache directory, where the rows stay in memory."""


@dataclass(frozen=True)
class BaseTargets:
    """The base model's predictions at each predicted position.

    Attributes:
        argmax: [N] int32, its top token; the first one if several tie.
        log_prob: [N] float32, log p_base(argmax), nats; the forgetting floor is the mean of its negative.
        entropy: [N] float32, entropy of its distribution, nats.
        data_log_prob: [N] float32, log p_base(true token), nats.
        fingerprint: hash of what determines these numbers; during training, of the windows alone.
    """

    argmax: NDArray[np.int32]
    log_prob: NDArray[np.float32]
    entropy: NDArray[np.float32]
    data_log_prob: NDArray[np.float32]
    fingerprint: str


ARRAYS: dict[str, Any] = {
    "argmax": np.int32,
    "log_prob": np.float32,
    "entropy": np.float32,
    "data_log_prob": np.float32,
}


@dataclass(frozen=True)
class ExpectedRows:
    """The base distribution's expectation of the head's rows at each position; see `kernels.expected_logit`.

    Attributes:
        head: the base model's head; the rows are valid for tuned models with the same head.
        at: positions [n] -> mean_row [n, D] and mean_bias [n], float32.
    """

    head: heads.LinearHead
    at: Callable[[NDArray[np.int64]], tuple[NDArray[np.float32], NDArray[np.float32]]]


def base_targets(
    model: nn.Module,
    windows: Windows,
    *,
    key: str,
    cache_dir: Path | None,
    batch_tokens: int,
    rows: int | None = None,
) -> BaseTargets:
    """The base model's targets, from the cache if possible, else computed and cached.

    A PeftModel is measured with its adapters disabled. If two processes call this at the same time, one computes and
    the other waits for the file.

    Args:
        model: the base model, or a PeftModel around it.
        windows: the text.
        key: what determines the model's numbers: revision or weights hash, and dtype.
        cache_dir: where to cache; None computes without a cache.
        batch_tokens: tokens per forward pass. Part of the cache key, since rounding depends on it.
        rows: use only the vocabulary's first `rows` tokens; default all.

    Raises:
        UsageError: no predicted position, a merged adapter.
        ForgettingError: memory is too small for a single window.
    """
    return base_side(
        model, windows, key=key, cache_dir=cache_dir, batch_tokens=batch_tokens, rows=rows, with_rows=False
    )[0]


def stored_targets(
    model: nn.Module, windows: Windows, *, key: str, cache_dir: Path, batch_tokens: int
) -> BaseTargets | None:
    """The cached targets of a model that is not loaded; None if they are not cached.

    Args:
        model: any model on the type of device on which the targets were computed.
        windows, key, cache_dir, batch_tokens: as in `base_targets`.
    """
    fingerprint = targets_fingerprint(model, windows, key, batch_tokens, None)
    job = _Job(model, windows, None, fingerprint, cache_dir)
    found = array_cache.read(job.path("targets"), fingerprint, base_spec(windows))
    return None if found is None else BaseTargets(**found.arrays(), fingerprint=fingerprint)


def shared_targets(
    load: Callable[[], Any], windows: Windows, *, device: str, key: str, cache_dir: Path, batch_tokens: int
) -> BaseTargets:
    """`base_targets` computed by all processes of a run together, for a base model with sharded weights.

    Args:
        load: returns the base model, sharded; only called if the targets are not cached.
        device: type of the device that it runs on: `cpu`, `cuda`.
        windows, key, cache_dir, batch_tokens: as in `base_targets`.
    """
    passes.check_windows(windows)
    fingerprint = _fingerprint(device, windows, key, batch_tokens, None)
    path = cache_dir / f"targets-{fingerprint[:32]}.safetensors"
    stored = array_cache.read(path, fingerprint, base_spec(windows)) if processes.is_main() else None
    arrays: dict[str, NDArray[Any]] | None = processes.shared(None if stored is None else stored.arrays())
    if arrays is None:
        arrays = together_arrays(load(), windows, batch_tokens)
        memory.collect()  # frees the model
        if processes.is_main() and (usable := array_cache.usable(cache_dir)) is not None:
            with array_cache.held(path):
                array_cache.write(usable / path.name, arrays, fingerprint)
        processes.wait_for_all()
    return BaseTargets(**arrays, fingerprint=fingerprint)


def together_arrays(model: Any, windows: Windows, batch_tokens: int) -> dict[str, NDArray[Any]]:
    """`compute_arrays` by all processes, each on its share of the batches; all get the same result."""
    shard = (processes.index(), processes.count())
    arrays = passes.halving(
        lambda size: compute_arrays(model, windows, size, None, shard=shard),
        *(windows, batch_tokens),
        sharded=shard[1] > 1,
        together=sharding.is_sharded(model),
    )
    return {name: processes.summed(array) for name, array in arrays.items()}


def base_side(
    model: nn.Module,
    windows: Windows,
    *,
    key: str,
    cache_dir: Path | None,
    batch_tokens: int,
    rows: int | None,
    with_rows: bool,
) -> tuple[BaseTargets, ExpectedRows | None]:
    """`base_targets`, and on request the expected rows, in one pass.

    Returns:
        The targets; the expected rows, or None without `with_rows`, if they are too large, or if the head is not linear
        or is soft-capped.
    """
    passes.check_windows(windows)
    inner = adapters.unwrapped(model)
    fingerprint = targets_fingerprint(inner, windows, key, batch_tokens, rows)
    job = _Job(inner, windows, rows, fingerprint, array_cache.usable(cache_dir))
    head = job.row_head() if with_rows else None
    try:
        targets, found = job.find_or_compute(head, batch_tokens)
    except Exception as error:
        if job.cache_dir is None or not no_room(error):
            raise
        log.warning("%s: the disk is full; measuring without a cache", job.cache_dir)
        job = dataclasses.replace(job, cache_dir=None)
        head = job.row_head() if with_rows else None
        targets, found = job.find_or_compute(head, batch_tokens)

    def at(places: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        assert found is not None
        # Use a new map each time: its pages are freed afterwards, so memory does not grow with the text.
        return found("mean_row")[places], found("mean_bias")[places]

    return BaseTargets(**targets, fingerprint=fingerprint), None if head is None else ExpectedRows(head, at)


@dataclass(frozen=True)
class _Job:
    model: Any
    windows: Windows
    rows: int | None
    fingerprint: str
    cache_dir: Path | None

    def row_spec(self, head: heads.LinearHead) -> array_cache.Spec:
        tokens = self.windows.n_predicted
        return {"mean_row": (np.float32, (tokens, head.weight.shape[1])), "mean_bias": (np.float32, (tokens,))}

    def path(self, what: str) -> Path:
        assert self.cache_dir is not None
        return self.cache_dir / f"{what}-{self.fingerprint[:32]}.safetensors"

    def find_or_compute(self, head: heads.LinearHead | None, batch_tokens: int) -> tuple[dict[str, NDArray[Any]], Any]:
        """Like `compute`, but from the cache if possible."""
        if self.cache_dir is None:
            return passes.halving(lambda size: self.compute(size, head), self.windows, batch_tokens)
        with array_cache.held(self.path("targets")):
            stored = array_cache.read(self.path("targets"), self.fingerprint, base_spec(self.windows))
            if stored is not None and head is None:
                return stored.arrays(), None
            if stored is not None and head is not None:
                rows = array_cache.read(self.path("rows"), self.fingerprint, self.row_spec(head))
                if rows is not None:
                    return stored.arrays(), rows.array
            return passes.halving(lambda size: self.compute(size, head), self.windows, batch_tokens)

    def row_head(self) -> heads.LinearHead | None:
        """The head, if its expected rows can be computed and are small enough to store."""
        with adapters.undisturbed(self.model), adapters.as_base(self.model):
            head = passes.runner(self.model, self.windows).head
        if not isinstance(head, heads.LinearHead) or head.softcap is not None:
            return None
        limit = ROWS_LIMIT if self.cache_dir is not None else MEMORY_LIMIT
        return head if 4 * self.windows.n_predicted * (head.weight.shape[1] + 1) <= limit else None

    def compute(self, size: int, head: heads.LinearHead | None) -> tuple[dict[str, NDArray[Any]], Any]:
        """The arrays of BaseTargets and, with a head, a way to get the arrays of ExpectedRows by name."""
        if head is None:
            arrays = compute_arrays(self.model, self.windows, size, self.rows)
            found = None
        elif self.cache_dir is None:
            kept = {name: np.zeros(shape, kind) for name, (kind, shape) in self.row_spec(head).items()}
            arrays = compute_arrays(self.model, self.windows, size, self.rows, keep=lambda name: kept[name])
            found = kept.__getitem__
        else:
            with array_cache.filling(self.path("rows"), self.row_spec(head), self.fingerprint) as new:
                arrays = compute_arrays(
                    self.model, self.windows, size, self.rows, keep=lambda name: new.array(name, "r+")
                )
            found = dataclasses.replace(new, path=self.path("rows")).array
        if self.cache_dir is not None:
            array_cache.write(self.path("targets"), arrays, self.fingerprint)
        return arrays, found


def base_spec(windows: Windows) -> array_cache.Spec:
    """Dtype and shape of the arrays of BaseTargets."""
    return {name: (kind, (windows.n_predicted,)) for name, kind in ARRAYS.items()}


def targets_fingerprint(model: nn.Module, windows: Windows, key: str, batch_tokens: int, rows: int | None) -> str:
    """The content key of the targets: on one machine, equal keys mean equal numbers, bit for bit."""
    return _fingerprint(next(model.parameters()).device.type, windows, key, batch_tokens, rows)


def _fingerprint(device: str, windows: Windows, key: str, batch_tokens: int, rows: int | None) -> str:
    content = [FORMAT, key, windows.fingerprint(), batch_tokens, rows, device]
    content += [torch.__version__, transformers.__version__]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def compute_arrays(
    model: Any,
    windows: Windows,
    batch_tokens: int,
    rows: int | None,
    *,
    shard: tuple[int, int] = (0, 1),
    keep: Callable[[str], NDArray[Any]] | None = None,
) -> dict[str, NDArray[Any]]:
    """The arrays of BaseTargets by name; zero at positions of other shards.

    Args:
        model: the base model, or a PeftModel around it.
        windows: the text.
        batch_tokens: tokens per forward pass.
        rows: use only the vocabulary's first `rows` tokens; None means all.
        shard: (index, count) of the processes that share the batches.
        keep: name -> the array to write the expected rows to, `mean_row` or `mean_bias`; None computes none.
    """
    kinds = {"log_prob": torch.float32, "entropy": torch.float32, "data_log_prob": torch.float32}
    collected = passes.Collected(windows.n_predicted, argmax=torch.int32, **kinds)
    with adapters.undisturbed(model), adapters.as_base(model):
        run = passes.runner(model, windows)
        limit = run.head.vocabulary if rows is None else rows
        for batch, hidden in passes.hidden_states(run, windows, batch_tokens, shard):
            tokens = passes.to_device(batch.token, run.device)
            found = kernels.describe(run.head, hidden, tokens, limit, with_mean_row=keep is not None)
            values = {"log_prob": -found.top_nll, "entropy": found.entropy, "data_log_prob": -found.nll}
            collected.put(batch.place, argmax=found.argmax, **values)
            if keep is not None:
                assert found.mean_row is not None
                assert found.mean_bias is not None
                keep("mean_row")[batch.place] = found.mean_row.cpu().numpy()
                keep("mean_bias")[batch.place] = found.mean_bias.cpu().numpy()
    return collected.arrays()

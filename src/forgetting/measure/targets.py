"""The base model's targets: computed once, cached under a content key, memory-mapped.

Only what is needed of the base model's distribution is kept: 16 bytes a token, where its log-probabilities over a
vocabulary of 32,000 take 64 kB (in bfloat16).

Shapes: N = windows.n_predicted, in the order of the windows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..windows import Windows
from . import kernels, passes

log = logging.getLogger(__name__)
FORMAT = 1
"""Raised when the meaning of the stored numbers changes: older files are then computed again."""


@dataclass(frozen=True)
class BaseTargets:
    """What the base model says at each predicted position.

    Attributes:
        argmax: [N] int32, its top token, the first of those that tie.
        log_prob: [N] float32, log p_base(argmax), nats; the forgetting floor is the mean of its negative.
        entropy: [N] float32, of its distribution, nats.
        data_log_prob: [N] float32, log p_base(true token), nats.
        fingerprint: sha256 of the model key, the windows and how they were computed.
    """

    argmax: NDArray[np.int32]
    log_prob: NDArray[np.float32]
    entropy: NDArray[np.float32]
    data_log_prob: NDArray[np.float32]
    fingerprint: str


ARRAYS = {"argmax": np.int32, "log_prob": np.float32, "entropy": np.float32, "data_log_prob": np.float32}


def base_targets(
    model: nn.Module,
    windows: Windows,
    *,
    key: str,
    cache_dir: Path | None,
    batch_tokens: int,
    rows: int | None = None,
) -> BaseTargets:
    """The base model's targets, from the cache where they are, else computed and cached.

    A PeftModel is measured with its adapters disabled. Two processes may call this at once: each writes a file of its
    own and renames it into place, and both have the same content.

    Args:
        model: the base model, or a PeftModel around it.
        windows: the text.
        key: what decides the model's numbers: revision or weights hash, and dtype.
        cache_dir: where to cache; None computes without a cache.
        batch_tokens: tokens a forward pass. Part of the cache key, since rounding depends on it.
        rows: the vocabulary's first `rows` tokens only; default all.
    """
    from .losses import check_windows

    check_windows(windows)
    fingerprint = targets_fingerprint(model, windows, key, batch_tokens, rows)
    path = None if cache_dir is None else Path(cache_dir) / f"targets-{fingerprint[:32]}.safetensors"
    if path is not None and (cached := read(path, fingerprint, windows.n_predicted)) is not None:
        return cached
    inner = passes.unwrapped(model)
    targets = passes.halving(lambda size: _compute(inner, windows, size, rows, fingerprint), windows, batch_tokens)
    if path is not None:
        write(path, targets)
    return targets


def targets_fingerprint(model: nn.Module, windows: Windows, key: str, batch_tokens: int, rows: int | None) -> str:
    """The content key of the targets: equal keys mean equal numbers, bit for bit, on one machine."""
    device = next(passes.unwrapped(model).parameters()).device.type
    content = [FORMAT, key, windows.fingerprint(), batch_tokens, rows, device, torch.__version__]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _compute(model: Any, windows: Windows, size: int, rows: int | None, fingerprint: str) -> BaseTargets:
    arrays = compute_arrays(model, windows, size, rows)
    return BaseTargets(**arrays, fingerprint=fingerprint)


def compute_arrays(
    model: Any, windows: Windows, batch_tokens: int, rows: int | None, shard: tuple[int, int] = (0, 1)
) -> dict[str, NDArray[Any]]:
    """The arrays of BaseTargets by name; positions of other shards are zero."""
    arrays: dict[str, NDArray[Any]] = {name: np.zeros(windows.n_predicted, kind) for name, kind in ARRAYS.items()}
    with passes.undisturbed(model), passes.as_base(model):
        run = passes.runner(model, windows)
        limit = run.head.vocabulary if rows is None else rows
        for batch, hidden in passes.hidden_states(run, windows, batch_tokens, shard):
            tokens = torch.from_numpy(batch.token)
            found = kernels.describe(run.head, hidden, tokens, limit, with_mean_row=False)
            arrays["argmax"][batch.place] = found.argmax.cpu().numpy()
            arrays["log_prob"][batch.place] = -found.top_nll.cpu().numpy()
            arrays["entropy"][batch.place] = found.entropy.cpu().numpy()
            arrays["data_log_prob"][batch.place] = -found.nll.cpu().numpy()
    return arrays


def write(path: Path, targets: BaseTargets) -> None:
    """Store targets, whole or not at all: written beside, checksummed, renamed into place."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(getattr(targets, name)) for name in ARRAYS}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.close(handle)
    try:
        save_file(arrays, name, metadata={"fingerprint": targets.fingerprint, "sha256": _checksum(arrays)})
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def read(path: Path, fingerprint: str, tokens: int) -> BaseTargets | None:
    """Cached targets, memory-mapped; None where there are none or where they are stale or damaged, with a notice."""
    if not path.exists():
        return None
    try:
        found, stored, checksum = _map(path)
    except Exception as error:  # whatever is wrong with a cache file, it is computed again
        log.warning("%s: damaged cache file (%s), computing it again", path.name, type(error).__name__)
        return None
    sound = (
        stored == fingerprint
        and set(found) == set(ARRAYS)
        and all(found[name].dtype == kind and found[name].shape == (tokens,) for name, kind in ARRAYS.items())
        and checksum == _checksum(found)
    )
    if not sound:
        log.warning("%s: stale or damaged cache file, computing it again", path.name)
        return None
    return BaseTargets(**found, fingerprint=fingerprint)


def _map(path: Path) -> tuple[dict[str, NDArray[Any]], str, str]:
    """Arrays of a safetensors file as read-only maps, the fingerprint and the checksum.

    The header is read here because safetensors' numpy reader copies. Format: 8 bytes little-endian header length,
    JSON header, data.
    """
    kinds = {"I32": np.int32, "F32": np.float32}
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, mode="r", offset=8 + size)
    found = {
        name: data[slice(*entry["data_offsets"])].view(kinds[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }
    meta = header["__metadata__"]
    return found, meta["fingerprint"], meta["sha256"]


def _checksum(arrays: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


assert {field.name for field in fields(BaseTargets)} == {*ARRAYS, "fingerprint"}

"""Tensors that are computed once a study and kept in its folder, with the time that computing them took."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Situation

log = logging.getLogger(__name__)


def cached(at: Situation, what: str, key: Sequence[Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `compute` gives, from the study's cache where it is there.

    A run that finds it there counts the time that it took all the same: its cost does not depend on which run came
    first. Of two processes that want it at once, one computes and the other waits.

    Args:
        at: the run's situation; its prepare_seconds grow.
        what: a name for the file.
        key: all that decides the numbers, beside the base model.
        compute: named tensors on the CPU.
    """
    import torch
    from filelock import lock_descriptor
    from safetensors.torch import save_file

    device = at.base.model.device.type
    content = json.dumps([what, at.base.key, device, torch.__version__, *key], sort_keys=True, default=str)
    path = at.cache / f"{what}-{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        lock_descriptor(lock.fileno())
        found = _read(path)
        if found is None:
            began = time.perf_counter()
            tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
            partial = path.with_suffix(f".{os.getpid()}.tmp")
            save_file(tensors, partial, metadata={"seconds": f"{time.perf_counter() - began:.3f}"})
            partial.replace(path)
            # read again, so that the first run has what every later one has
            found = _read(path)
        assert found is not None
    at.add_seconds(found[1])
    return found[0]


def _read(path: Path) -> tuple[dict[str, Tensor], float] | None:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, float(file.metadata()["seconds"])  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        log.warning("%s: damaged cache file (%s), computing it again", path.name, type(error).__name__)
        return None

"""Keeps the model to restore when training exceeds a budget: an earlier copy of the trained weights.

A copy is made on the CPU at measurements inside the budget, so it depends on no checkpoint and no saving strategy.
If weights are sharded over processes, each process copies its own part.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..models import processes, sharding

NAME = "forgetting-kept"


@dataclass
class Kept:
    """A model that was inside the budget.

    Attributes:
        step: number of optimiser steps it was trained for.
        score: selects the best of several, higher is better; None keeps the last one.
        weights: name -> the trained weights, on the CPU.
    """

    step: int
    score: float | None
    weights: dict[str, Tensor]

    def is_better_than(self, score: float | None) -> bool:
        """Whether to keep this one when a later model with this score is inside the budget."""
        return self.score is not None and (score is None or not score > self.score)


@torch.no_grad()
def copied(model: Any, step: int, score: float | None, before: Kept | None = None) -> Kept:
    """Copy the weights that are trained now, and those that were trained when the last copy was made.

    Args:
        model: the unwrapped model.
        step: number of optimiser steps so far.
        score: see `Kept`.
        before: the previous copy; its memory is reused.
    """
    weights = before.weights if before is not None else {}
    for name, tensor in _trained(model, weights).items():
        if (held := weights.get(name)) is None:
            weights[name] = tensor.to("cpu", copy=True)
        else:
            held.copy_(tensor)
    return Kept(step, score, weights)


@torch.no_grad()
def put_back(kept: Kept, model: Any) -> bool:
    """Write the kept weights back into their model.

    Returns:
        False if weights are trained now that have no copy, because they were not trained then; nothing is written.
    """
    tensors = _trained(model, kept.weights)
    if tensors.keys() != kept.weights.keys():
        return False
    for name, tensor in tensors.items():
        tensor.copy_(kept.weights[name])
    return True


def write(kept: Kept, folder: Path, *, sharded: bool) -> None:
    """Store it in a later step's checkpoint folder: each process its part; whole weights by the main process only."""
    if not (sharded or processes.is_main()):
        return
    score = {} if kept.score is None else {"score": repr(kept.score)}
    metadata = {"step": str(kept.step), **score}
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in kept.weights.items()}, _path(folder, sharded), metadata
    )


def read(folder: Path, model: Any, *, sharded: bool) -> Kept | None:
    """What `write` stored for this model; None if any process finds nothing."""
    found = _read(_path(folder, sharded), model)
    everywhere = processes.summed_one(int(found is not None)) == processes.count()
    return found if everywhere else None


def _read(path: Path, model: Any) -> Kept | None:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step, score = int(about["step"]), float(about["score"]) if "score" in about else None
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    shapes = {name: tensor.shape for name, tensor in _trained(model, weights).items()}
    if {name: tensor.shape for name, tensor in weights.items()} != shapes:
        return None
    return Kept(step, score, weights)


def _path(folder: Path, sharded: bool) -> Path:
    return folder / (f"{NAME}-{processes.index()}.safetensors" if sharded else f"{NAME}.safetensors")


def _trained(model: Any, also: Container[str] = ()) -> dict[str, Tensor]:
    """The trained weights and those named in `also`, by name; for sharded weights, this process's part."""
    sharding.free(model)
    return {
        name: (parameter.to_local() if sharding.is_part(parameter) else parameter).detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or name in also
    }

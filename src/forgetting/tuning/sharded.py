"""The trainer of a run whose weights are sharded over processes (`models.sharding`).

Each process trains its part of every weight. Its checkpoints contain that part, and its part of the optimiser's state,
in its own files, so that no process ever holds everything. A run resumes with the same number of processes.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Adafactor

from ..models import processes, sharding
from .sharded_adafactor import ShardedAdafactor
from .trainer import CheckedTrainer, keep_dtypes

SCHEDULER = "scheduler.pt"


def _weights(folder: Path) -> Path:
    return folder / f"weights-{processes.index()}-of-{processes.count()}.safetensors"


def _optimizer(folder: Path) -> Path:
    return folder / f"optimizer-{processes.index()}-of-{processes.count()}.pt"


class ShardedTrainer(CheckedTrainer):
    """A `CheckedTrainer` for a sharded model: uses the model's own loss and PEFT's own layers, on parts of weights."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # FSDP sums the gradients, so never wrap in DistributedDataParallel, even if the environment asks
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)

    @functools.cached_property
    def fused(self) -> None:
        """None: uses the model's own loss, since the head is whole only while the model runs."""
        return None

    def folding(self) -> AbstractContextManager[None]:
        """Uses PEFT's own layers; ours are verified only on whole weights."""
        return nullcontext()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The usual optimiser; for Adafactor ours, since its means are over whole weights."""
        made: torch.optim.Optimizer = super().create_optimizer()
        if isinstance(made, Adafactor):
            made = self.optimizer = ShardedAdafactor(made.param_groups)
            keep_dtypes(made)
        return made

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write this process's part of the trained weights."""
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: sharding.part_of(p.detach()).local.contiguous() for name, p in self._trained().items()},
            _weights(folder),
        )

    def _trained(self) -> dict[str, Any]:
        sharding.free(self.model)
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = self.optimizer.state_dict()
        state["state"] = {
            key: {name: _stored(value) for name, value in one.items()} for key, one in state["state"].items()
        }
        torch.save(state, _optimizer(Path(output_dir)))
        if processes.is_main():
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        found = load_file(_weights(Path(resume_from_checkpoint)))
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.to_local().copy_(found[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        state = torch.load(_optimizer(folder), map_location="cpu", weights_only=True)
        like = [p for group in self.optimizer.param_groups for p in group["params"]]
        state["state"] = {
            key: {name: _restored(value, like[key]) for name, value in one.items()}
            for key, one in state["state"].items()
        }
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))


def _stored(value: Any) -> Any:
    """A part as plain data; anything else unchanged."""
    if not sharding.is_part(value):
        return value
    part = sharding.part_of(value)
    return {"local": part.local.cpu(), "shape": list(part.shape), "stride": list(part.stride)}


def _restored(value: Any, like: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return sharding.tensor_of(sharding.Part(value["local"], tuple(value["shape"]), tuple(value["stride"])), like)

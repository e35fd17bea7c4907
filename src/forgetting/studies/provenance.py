"""The provenance of a run's numbers, as stored in run.json: configuration, versions, hardware, command, times."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ..config.schema import RunConfig
from ..models import processes, quantised
from ..models.loading import count_parameters
from ..tuning.mitigations import label as mitigation_label

if TYPE_CHECKING:
    from ..models.loading import Base

PACKAGES = ("forgetting", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy")


def record(run_id: str, run: RunConfig) -> dict[str, Any]:
    """The part of run.json that is known before the run begins."""
    return {
        "run_id": run_id,
        "dataset": run.dataset_name,
        "method": run.method.model_dump(mode="json", exclude={"label", "mitigations"}),
        "label": run.method.label or run.method.name,
        "mitigation": mitigation_label(run.mitigations),
        "seed": run.seed,
        "config": run.model_dump(mode="json"),
    }


def execution(base: Base) -> dict[str, Any]:
    """The part of run.json on this execution: base model's size, versions, hardware, processes, command."""
    launch = processes.launched()
    packages = (*PACKAGES, *(["bitsandbytes"] if quantised.bits_of(base.model.config) else []))
    return {
        "model_params": count_parameters(base.model, trainable=False),
        "versions": {name: metadata.version(name) for name in packages} | {"python": platform.python_version()},
        "hardware": _hardware(base),
        "processes": processes.count(),
        "accelerate": None if launch is None else dict(launch.content),
        "command": _command(),
    }


def other_processes(state: Mapping[str, Any], count: int, *, sharded: bool) -> str:
    """How the processes changed since a run began, in words; empty if they did not.

    Args:
        state: the run's record.
        count: number of processes now.
        sharded: whether they shard the weights now.
    """
    if "versions" not in state:
        return ""
    then = state.get("processes", 1)
    if then != count:
        return f"the number of processes changed from {then} to {count}"
    before = "fsdp" in (state.get("accelerate") or {})
    words = {True: "sharded by FSDP", False: "whole in each process"}
    return "" if before == sharded else f"weights were {words[before]} and are {words[sharded]}"


def _command() -> str | None:
    """The command line of this process; None in a Ray worker, whose command line is Ray's own."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and ray.get_runtime_context().get_task_id() is not None:
        return None
    return shlex.join(sys.argv)


def _hardware(base: Base) -> dict[str, Any]:
    import torch

    device = base.model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "host": platform.node(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": quantised.dtype_name(base.model),
    }


def now() -> str:
    """The time in UTC, for readers only: no code depends on it."""
    return datetime.now(UTC).isoformat(timespec="seconds")

"""The data-parallel processes of one run: which one this is, and what they agree on.

With one process, the usual case, nothing here waits or sends anything, and torch is not imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ForgettingError, UsageError
from . import memory

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

T = TypeVar("T")
FOREVER = timedelta(days=365)
"""Timeout of waits while one process works alone (a checkpoint, questions to the model). It need not be short: the
parent process notices if a process dies."""


@dataclass(frozen=True)
class Sharding:
    """How weights are sharded over processes (FSDP2).

    Attributes:
        reshard_after_forward: free a block's weights after its forward pass and gather them again for the backward one.
        layers: class names of the blocks that are gathered one after another; empty means the model's own list.
        checkpointing: recompute activations inside blocks instead of storing them.
    """

    reshard_after_forward: bool = True
    layers: tuple[str, ...] = ()
    checkpointing: bool = False


@dataclass(frozen=True)
class Launch:
    """How one run is spread over several processes, on this machine or on several.

    Attributes:
        processes: number of processes on all machines.
        device: what each computes on: its own GPU, or the CPU.
        gpu_ids: which GPUs, as for CUDA_VISIBLE_DEVICES; None means those that are visible.
        content: the accelerate configuration, for run.json.
        sharding: how the weights are sharded; None means that each process has the whole model.
        machines: number of machines, each with the same number of processes.
        machine: index of this machine; the first, 0, decides what is done.
        address, port: where the first machine listens for the others.
    """

    processes: int
    device: str
    gpu_ids: str | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    sharding: Sharding | None = None
    machines: int = 1
    machine: int = 0
    address: str | None = None
    port: int = 0

    @property
    def local(self) -> range:
        """Indices of this machine's processes."""
        count = self.processes // self.machines
        return range(self.machine * count, (self.machine + 1) * count)


class RunFailedError(ForgettingError):
    """An error in a process that does not write the run's record; its parent process writes it."""


_launch: Launch | None = None


def join(launch: Launch, index: int, meeting: str) -> None:
    """Join the processes of a launch; returns when all have joined.

    Args:
        launch: shared by all processes of this machine.
        index: index of this process; 0 is the main one.
        meeting: path of a file for this launch only; with several machines, a name in the first machine's store.
    """
    global _launch
    import torch

    # accelerate reads these when the trainer is made, and finds the existing group
    here = index - launch.local.start
    numbers = {"RANK": index, "LOCAL_RANK": here, "WORLD_SIZE": launch.processes, "LOCAL_WORLD_SIZE": len(launch.local)}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    if launch.device == "cuda":
        torch.cuda.set_device(here)
    if launch.sharding is not None:
        memory.return_freed()
    backend = "cpu:gloo,cuda:nccl" if launch.device == "cuda" else "gloo"
    where: dict[str, Any] = {"init_method": f"file://{meeting}"}
    if launch.machines > 1:
        # accelerate requires these, although the group already exists
        os.environ.update(MASTER_ADDR=str(launch.address), MASTER_PORT=str(launch.port))
        stores: Any = torch.distributed
        store = stores.TCPStore(str(launch.address), launch.port, is_master=False, timeout=FOREVER)
        where = {"store": stores.PrefixStore(meeting, store)}
    torch.distributed.init_process_group(backend, **where, rank=index, world_size=launch.processes, timeout=FOREVER)
    _launch = launch


def leave() -> None:
    """Leave the group; all processes of a launch do so at the same time."""
    global _launch
    import torch

    torch.distributed.destroy_process_group()
    _launch = None


def launched() -> Launch | None:
    """The launch that this process belongs to, or None."""
    return _launch


def refuse_foreign() -> None:
    """Refuse processes that a launcher started several times: each would do the same run, or wait for ever.

    Raises:
        UsageError: WORLD_SIZE is more than 1.
    """
    if _launch is None and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise UsageError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: started by accelerate launch or torchrun; instead start "
            "forgetting once, with --accelerate-config FILE, and it starts the processes itself"
        )


def count() -> int:
    """Number of processes that do this run, or this training, together."""
    distributed = _distributed()
    return 1 if distributed is None else int(distributed.get_world_size())


def index() -> int:
    """The index of this process; 0 is the main one, which writes."""
    distributed = _distributed()
    return 0 if distributed is None else int(distributed.get_rank())


def is_main() -> bool:
    """Whether this is the process that writes."""
    return index() == 0


def wait_for_all() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        summed_one(0)


def shared(value: T) -> T:
    """The main process's value, in all processes."""
    if count() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def summed(array: NDArray[Any]) -> NDArray[Any]:
    """The sum of all processes' arrays; exact if each element is nonzero in at most one of them."""
    if count() == 1:
        return array
    import numpy as np
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(_device())
    torch.distributed.all_reduce(tensor)
    result: NDArray[Any] = tensor.cpu().numpy()
    return result


def summed_one(number: int) -> int:
    """The sum of all processes' numbers."""
    import numpy as np

    return int(summed(np.array([number], np.int64))[0])


def largest(number: float) -> float:
    """The largest of all processes' numbers."""
    if count() == 1:
        return number
    import torch

    tensor = torch.tensor([number], dtype=torch.float64, device=_device())
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return float(tensor)


def check_same(model: nn.Module, *, trainable: bool, when: str) -> None:
    """Check that all processes have the same weights, by sums over their bytes; sharded parts are not compared.

    Args:
        model: the unwrapped model.
        trainable: check only trainable weights.
        when: when this is checked, for the error.

    Raises:
        ForgettingError: they differ: the processes' gradients diverged, and no process's numbers are right.
    """
    if count() == 1:
        return
    import torch

    looked = [p.detach() for p in model.parameters() if p.requires_grad or not trainable]
    parts = sys.modules.get("torch.distributed.tensor")
    weights: Iterable[torch.Tensor] = [w for w in looked if parts is None or not isinstance(w, parts.DTensor)]
    if _launch is not None and _launch.sharding is not None:
        weights = memory.a_few_at_a_time(weights, lambda weight: weight.nbytes)
    sums = [int(w.contiguous().flatten().view(torch.uint8).sum(dtype=torch.int64)) if w.numel() else 0 for w in weights]
    if sums != shared(sums):
        raise ForgettingError(f"{when} the weights of process {index()} differ from those of process 0")


def _distributed() -> Any:
    """torch.distributed if there is a process group, otherwise None."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed


def _device() -> Any:
    """The device for numbers that processes exchange: the CPU if their group supports it."""
    import torch

    return "cpu" if "cpu:" in torch.distributed.get_backend_config() else torch.device("cuda")

"""The processes that do one run together by data parallelism: which one this is, and what they agree on.

With one process, the usual case, nothing here waits or sends anything, and torch is not imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ForgettingError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

T = TypeVar("T")
FOREVER = timedelta(days=365)
"""For what one process does while the others wait (a checkpoint, questions to the model): a process that dies is
noticed by the one that started it, not by a timeout."""


@dataclass(frozen=True)
class Sharding:
    """How weights are shared out over processes (FSDP2).

    Attributes:
        reshard_after_forward: free a block's weights after its forward pass and gather them again for the backward one.
        layers: class names of the blocks that are gathered one after another; none: what the model says.
        checkpointing: keep no activations inside blocks and compute them again.
    """

    reshard_after_forward: bool = True
    layers: tuple[str, ...] = ()
    checkpointing: bool = False


@dataclass(frozen=True)
class Launch:
    """How one run is spread over several processes, of this machine or of several.

    Attributes:
        processes: how many, on all machines.
        device: what each computes on: a GPU of its own, or the CPU.
        gpu_ids: which GPUs, as CUDA_VISIBLE_DEVICES takes them; None is those that are visible.
        content: of the accelerate configuration, for run.json.
        sharding: how each holds a part of the weights; None: each holds the whole model.
        machines: how many, each with as many processes.
        machine: which one this is; the first, 0, says what is done.
        address, port: where the first one answers the others.
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
        """Numbers of the processes of this machine."""
        count = self.processes // self.machines
        return range(self.machine * count, (self.machine + 1) * count)


class RunFailedError(ForgettingError):
    """What went wrong in a process that does not write the run's record; who started it does."""


_launch: Launch | None = None


def join(launch: Launch, index: int, meeting: str) -> None:
    """Become one of the processes of a launch; returns when all are there.

    Args:
        launch: shared by all of this machine.
        index: of this process; 0 is the main one.
        meeting: a file in a folder that is theirs alone; of several machines, a name in the first one's store.
    """
    global _launch
    import torch

    # accelerate reads them when the trainer is made, and finds the group that is there already
    here = index - launch.local.start
    numbers = {"RANK": index, "LOCAL_RANK": here, "WORLD_SIZE": launch.processes, "LOCAL_WORLD_SIZE": len(launch.local)}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    if launch.device == "cuda":
        torch.cuda.set_device(here)
    backend = "cpu:gloo,cuda:nccl" if launch.device == "cuda" else "gloo"
    where: dict[str, Any] = {"init_method": f"file://{meeting}"}
    if launch.machines > 1:
        # accelerate asks for them, though the group is there already
        os.environ.update(MASTER_ADDR=str(launch.address), MASTER_PORT=str(launch.port))
        stores: Any = torch.distributed
        store = stores.TCPStore(str(launch.address), launch.port, is_master=False, timeout=FOREVER)
        where = {"store": stores.PrefixStore(meeting, store)}
    torch.distributed.init_process_group(backend, **where, rank=index, world_size=launch.processes, timeout=FOREVER)
    _launch = launch


def leave() -> None:
    """Be on one's own again; all processes of a launch do so at once."""
    global _launch
    import torch

    torch.distributed.destroy_process_group()
    _launch = None


def launched() -> Launch | None:
    """The launch that this process is one of, or None."""
    return _launch


def refuse_foreign() -> None:
    """Refuse processes that somebody else started several of: each would do the same run, or wait for ever.

    Raises:
        UsageError: WORLD_SIZE says so.
    """
    if _launch is None and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise UsageError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: started by accelerate launch or torchrun; start forgetting once, "
            "with --accelerate-config FILE, and it starts its processes itself"
        )


def count() -> int:
    """Processes that do this run, or this training, together."""
    distributed = _distributed()
    return 1 if distributed is None else int(distributed.get_world_size())


def index() -> int:
    """Which of them this is; 0 is the main one, which writes."""
    distributed = _distributed()
    return 0 if distributed is None else int(distributed.get_rank())


def is_main() -> bool:
    """Whether this is the process that writes."""
    return index() == 0


def wait_for_all() -> None:
    """Go on when all processes are here."""
    if count() > 1:
        summed_one(0)


def shared(value: T) -> T:
    """The main process's value, in all of them."""
    if count() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def summed(array: NDArray[Any]) -> NDArray[Any]:
    """The sum of all processes' arrays; exact where each place is zero in all but one of them."""
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
    """See that all processes hold the same weights, bit for bit, by sums over their bytes; parts of weights differ.

    Args:
        model: unwrapped.
        trainable: only look at what trains.
        when: for the error.

    Raises:
        ForgettingError: they do not: their gradients went apart, and the numbers of none of them are right.
    """
    if count() == 1:
        return
    import torch

    looked = [p.detach() for p in model.parameters() if p.requires_grad or not trainable]
    parts = sys.modules.get("torch.distributed.tensor")
    weights = [w for w in looked if parts is None or not isinstance(w, parts.DTensor)]
    sums = [int(w.contiguous().view(torch.uint8).sum(dtype=torch.int64)) if w.numel() else 0 for w in weights]
    if sums != shared(sums):
        raise ForgettingError(f"{when} the weights of process {index()} are not those of process 0")


def _distributed() -> Any:
    """torch.distributed where a group of processes is there; None else."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed


def _device() -> Any:
    """Where numbers that processes exchange must lie: on the CPU if their group can do that."""
    import torch

    return "cpu" if "cpu:" in torch.distributed.get_backend_config() else torch.device("cuda")

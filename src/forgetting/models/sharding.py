"""Weights that are sharded over the processes of one run, each with its part of every tensor (FSDP2).

torch's `fully_shard` gathers a block's weights before the block runs and frees them afterwards. So a model can only be
run as a whole, by all processes at once; anything else that is read (the output head) is gathered here. Models that
accelerate, transformers or a script sharded are treated the same way.

Without such a model, the usual case, nothing here gathers anything, and torch's FSDP is not imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UsageError
from . import memory, processes, quantised, transformers_internals

T = TypeVar("T")
GRADIENT_HOOKS = "_backward_hooks"
"""Attribute of a torch parameter with what `register_hook` added; there is no other way to ask."""
CALL = "call_as_forward"
"""The method of a root module that calls something else between the root's own hooks."""


def shard(model: Any, inner: Any, how: processes.Sharding, device: str) -> None:
    """Shard a whole model's weights in place; this process keeps its part, on its device.

    Args:
        model: the same in all processes; on the CPU. `requires_grad` marks the trainable weights.
        inner: the model without its adapters' wrapper; the same object if it has none.
        how: how to shard.
        device: where each process computes, `cpu` or `cuda`.

    Raises:
        UsageError: the class of its blocks is unknown, or its weights cannot be sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if quantised.bits_of(inner.config) is not None or quantised.method_of(inner.config) is not None:
        raise UsageError(f"{type(inner).__name__}: its weights are quantised, and FSDP cannot shard those here")
    if any(getattr(parameter, GRADIENT_HOOKS, None) for parameter in model.parameters()):
        raise UsageError(f"{type(model).__name__}: its method changes gradients with hooks, which FSDP does not call")
    names = how.layers or transformers_internals.block_classes(inner)
    blocks = [module for module in inner.modules() if type(module).__name__ in names]
    if not blocks:
        said = f"{', '.join(names)}: no module of that class in" if names else "the class of blocks is not known for"
        raise UsageError(
            f"fsdp_transformer_layer_cls_to_wrap: {said} {type(inner).__name__}; give the class name of its blocks"
        )
    mesh = init_device_mesh(device, (processes.count(),))
    try:
        for block in memory.a_few_at_a_time(blocks, _bytes):
            fully_shard(block, mesh=mesh, reshard_after_forward=how.reshard_after_forward)
        fully_shard(model, mesh=mesh)
        memory.release_mapped()
    except (ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{type(inner).__name__}: FSDP cannot shard its weights: {reason}") from None


def _bytes(block: nn.Module) -> int:
    """The bytes of a block's whole weights."""
    return sum(parameter.numel() * parameter.element_size() for parameter in block.parameters())


def _units(model: Any) -> list[Any]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(model, nn.Module):
        return []
    return [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def is_sharded(model: Any) -> bool:
    """Whether a model's weights are sharded, so that all processes must call it equally often."""
    return bool(_units(model))


def is_part(tensor: Any) -> bool:
    """Whether a tensor is this process's part of a whole one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def free(model: Any) -> None:
    """Free weights that the model's last pass left gathered; they are parts again."""
    for unit in _units(model):
        unit.reshard()


@contextmanager
def parts_again(model: Any) -> Iterator[None]:
    """Free gathered weights before and after the block: training updates the parts, and flags are set on parts."""
    free(model)
    try:
        yield
    finally:
        free(model)


def whole(tensor: Tensor) -> Tensor:
    """A whole tensor, gathered from all processes if it is sharded; all processes call this."""
    if not is_part(tensor):
        return tensor
    found: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return found


def class_of(module: nn.Module) -> type:
    """A module's class before its weights were sharded; `fully_shard` replaces it with a subclass."""
    kind = type(module)
    if _units(module)[:1] == [module]:
        return kind.__mro__[2]
    return kind


def calling(model: Any, entry: Any) -> Callable[..., Any]:
    """How to call a part of a model, or the model: directly, or through its root's hooks if it is sharded."""
    units = _units(model)
    if not units or entry is units[0]:
        called: Callable[..., Any] = entry
        return called
    root = units[0]
    if CALL not in vars(root):
        from torch.distributed.fsdp import register_fsdp_forward_method

        setattr(root, CALL, _call)
        register_fsdp_forward_method(root, CALL)
    return lambda *arguments, **options: getattr(root, CALL)(entry, *arguments, **options)


def _call(entry: Callable[..., T], *arguments: Any, **options: Any) -> T:
    return entry(*arguments, **options)


@dataclass(frozen=True)
class Part:
    """Where this process's part of a tensor belongs.

    Attributes:
        local: the part.
        shape, stride: of the whole tensor.
    """

    local: Tensor
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def part_of(tensor: Any) -> Part:
    """This process's part of a tensor that is sharded along its first dimension.

    Raises:
        UsageError: it is sharded in another way.
    """
    from torch.distributed.tensor import Shard

    if tensor.placements != (Shard(0),):
        raise UsageError(
            f"a tensor is sharded as {tensor.placements}; only sharding along the first dimension is supported"
        )
    return Part(tensor.to_local().detach(), tuple(tensor.shape), tuple(tensor.stride()))


def tensor_of(part: Part, like: Any) -> Tensor:
    """The tensor of a part, sharded like another one."""
    from torch.distributed.tensor import DTensor

    found: Tensor = DTensor.from_local(
        part.local.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=torch.Size(part.shape),
        stride=part.stride,
    )
    return found


def make_whole(model: Any, names: Sequence[str]) -> None:
    """Replace parts with whole tensors, on the CPU, in the main process only: for saving, at the end.

    All processes call this. Tied weights stay tied.

    Args:
        model: sharded; it cannot be run afterwards.
        names: names of its parameters.
    """
    free(model)
    wanted = set(names)
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    parts: dict[int, Any] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, name))
            if f"{prefix}.{name}".removeprefix(".") in wanted:
                parts[id(parameter)] = parameter
    for key, parameter in parts.items():
        found = whole(parameter.detach())
        if processes.is_main():
            kept = nn.Parameter(found.cpu(), requires_grad=parameter.requires_grad)
            for module, name in places[key]:
                module.register_parameter(name, kept)

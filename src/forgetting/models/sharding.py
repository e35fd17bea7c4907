"""Weights that are shared out over the processes of one run, each holding its part of every tensor (FSDP2).

torch's `fully_shard` gathers a block's weights before the block runs and frees them after it. So a model runs only by
its own call, by all processes at once; what is read beside that (the output head) is gathered here. A model that
somebody else sharded (accelerate, transformers, a script) is treated alike.

With no such model, the usual case, nothing here gathers anything, and torch's FSDP is not imported.
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
from . import processes, quantised, transformers_internals

T = TypeVar("T")
GRADIENT_HOOKS = "_backward_hooks"
"""Of a parameter of torch: what `register_hook` put there; there is no other way to ask."""
CALL = "call_as_forward"
"""The method of a root module that calls something else between the root's own hooks."""


def shard(model: Any, inner: Any, how: processes.Sharding, device: str) -> None:
    """Share out a whole model's weights in place; this process keeps its part, on its device.

    Args:
        model: the same in all processes; on the CPU. What trains has `requires_grad`.
        inner: the model without its adapters' wrapper; the same one where it has none.
        how: as asked for.
        device: where each process computes, `cpu` or `cuda`.

    Raises:
        UsageError: no class of blocks is known, or its weights cannot be shared out.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if quantised.bits_of(inner.config) is not None or quantised.method_of(inner.config) is not None:
        raise UsageError(f"{type(inner).__name__}: its weights are quantised, which FSDP cannot share out here")
    if any(getattr(parameter, GRADIENT_HOOKS, None) for parameter in model.parameters()):
        raise UsageError(f"{type(model).__name__}: its method changes gradients by hooks, which FSDP does not call")
    names = how.layers or transformers_internals.block_classes(inner)
    blocks = [module for module in inner.modules() if type(module).__name__ in names]
    if not blocks:
        said = f"{', '.join(names)}: no module of that class in" if names else "no class of blocks is known of"
        raise UsageError(
            f"fsdp_transformer_layer_cls_to_wrap: {said} {type(inner).__name__}; give the class name of its blocks"
        )
    mesh = init_device_mesh(device, (processes.count(),))
    try:
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=how.reshard_after_forward)
        fully_shard(model, mesh=mesh)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{type(inner).__name__}: its weights cannot be shared out by FSDP: {reason}") from None


def _units(model: Any) -> list[Any]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(model, nn.Module):
        return []
    return [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def is_sharded(model: Any) -> bool:
    """Whether a model's weights are shared out, so that all processes must call it as often as each other."""
    return bool(_units(model))


def is_part(tensor: Any) -> bool:
    """Whether a tensor is this process's part of a whole one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def free(model: Any) -> None:
    """Free what the model's last pass left whole; weights are parts again."""
    for unit in _units(model):
        unit.reshard()


@contextmanager
def parts_again(model: Any) -> Iterator[None]:
    """Outside, before and after, weights are parts: training updates those, and flags are set on them."""
    free(model)
    try:
        yield
    finally:
        free(model)


def whole(tensor: Tensor) -> Tensor:
    """A whole tensor, gathered from all processes where it is a part; all of them call this."""
    if not is_part(tensor):
        return tensor
    found: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return found


def class_of(module: nn.Module) -> type:
    """A module's class as it was before its weights were shared out: `fully_shard` puts one of its own above it."""
    kind = type(module)
    if _units(module)[:1] == [module]:
        return kind.__mro__[2]
    return kind


def calling(model: Any, entry: Any) -> Callable[..., Any]:
    """How to call a part of a model, or the model: as it is, and by its root's hooks where it is sharded."""
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
        shape, stride: of the whole.
    """

    local: Tensor
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def part_of(tensor: Any) -> Part:
    """This process's part of a tensor that is shared out along its first dimension.

    Raises:
        UsageError: it is shared out in another way.
    """
    from torch.distributed.tensor import Shard

    if tensor.placements != (Shard(0),):
        raise UsageError(f"a tensor is shared out as {tensor.placements}; only parts of the first dimension are known")
    return Part(tensor.to_local().detach(), tuple(tensor.shape), tuple(tensor.stride()))


def tensor_of(part: Part, like: Any) -> Tensor:
    """The tensor of a part, shared out as another one is."""
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
    """Put whole tensors, on the CPU, in the place of parts, in the main process alone: for saving, at the end.

    All processes call this. Weights that are tied stay so.

    Args:
        model: sharded; it cannot be run afterwards.
        names: of its parameters.
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

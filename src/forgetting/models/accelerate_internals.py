"""What is used of accelerate that it does not document, in one place: what an upgrade may break."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from torch import nn

from ..errors import ForgettingError
from .private_names import PrivateName

SEEN = "1.6.0 to 1.15.0"
ORIGINAL_FORWARD = PrivateName(
    # on each module that Accelerator.prepare_model wraps in autocast; there is unwrap_model, which changes the model
    "accelerate",
    "object:_original_forward",
    "a model in training under mixed precision would be measured in it, too",
    SEEN,
)
DEVICE_MAP = PrivateName(
    # on a model whose layers dispatch_model spread over devices
    "accelerate",
    "object:hf_device_map",
    "a model that is spread over devices would be copied onto one",
    SEEN,
)


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """The forward that a model had before accelerate wrapped it in autocast (`Accelerator.prepare_model`)."""
    wrapped: list[Any] = [module for module in model.modules() if ORIGINAL_FORWARD.name in vars(module)]
    forwards = [module.forward for module in wrapped]
    try:
        for module in wrapped:
            module.forward = ORIGINAL_FORWARD.of(module)
        yield
    finally:
        for module, forward in zip(wrapped, forwards, strict=True):
            module.forward = forward


def spread(model: Any) -> bool:
    """Whether a model's layers lie on several devices, as `device_map` puts them."""
    return bool(getattr(model, DEVICE_MAP.name, None))


def check_joined(accelerator: Any, processes: int) -> None:
    """See that accelerate found the group of processes that this one has joined: it reads it from the environment.

    Raises:
        ForgettingError: it would train alone, each process another model.
    """
    if accelerator.num_processes != processes:
        raise ForgettingError(
            f"accelerate {metadata.version('accelerate')} finds {accelerator.num_processes} of the {processes} "
            f"processes that do this run; install a version that finds them (known: {SEEN}), and please report this"
        )

"""Undocumented parts of accelerate that we use, collected in one place because an upgrade may break them."""

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
    # set on each module that Accelerator.prepare_model wraps in autocast; unwrap_model would change the model
    "accelerate",
    "object:_original_forward",
    "a model that trains under mixed precision would also be measured in it",
    SEEN,
)
DEVICE_MAP = PrivateName(
    # set on a model whose layers dispatch_model spread over devices
    "accelerate",
    "object:hf_device_map",
    "a model spread over several devices would be copied onto one",
    SEEN,
)


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """A model's forward as it was before accelerate wrapped it in autocast (`Accelerator.prepare_model`)."""
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
    """Whether a model's layers are on several devices, as `device_map` places them."""
    return bool(getattr(model, DEVICE_MAP.name, None))


def check_joined(accelerator: Any, processes: int) -> None:
    """Check that accelerate, which reads the environment, found the process group that this process joined.

    Raises:
        ForgettingError: it did not, so each process would train its own model.
    """
    if accelerator.num_processes != processes:
        raise ForgettingError(
            f"accelerate {metadata.version('accelerate')} finds {accelerator.num_processes} of the {processes} "
            f"processes of this run; install a version that finds all of them (known: {SEEN}), and please report this"
        )

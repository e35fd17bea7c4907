"""How worker processes on the CPU are started: forked from a server that has imported the libraries, or spawned."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

from .calling import call_in_worker
from .worker import Context

_LIBRARIES = [
    *("forgetting.studies.execute", "forgetting.tuning.run", "transformers.models.auto.modeling_auto"),
    "forgetting.studies.engines.shared_memory",
]
"""Modules that the fork server imports for all workers; `shared_memory` must be last."""
_MAY_DIFFER = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "CUDA_VISIBLE_DEVICES", "PYTEST_CURRENT_TEST")
"""Environment variables that may differ from the fork server's: workers set their threads themselves, there is no
accelerator, and no library reads a test's name."""
_server: tuple[dict[str, str], Path] | None = None
"""Environment and working directory of this process when it started its fork server."""


def worker_context() -> Context:
    """The multiprocessing context for worker processes on the CPU.

    Workers are forked from a server that imported the libraries once, so that they share its memory and start quickly.
    They are spawned instead outside Linux, on machines with an accelerator, whose driver does not survive a fork, and
    if the environment has changed since the server started, because libraries read it when they are imported.
    """
    context = _forking()
    if context is None or _has_accelerator(context):
        return multiprocessing.get_context("spawn")
    return context


def _forking() -> Context | None:
    """The context of the fork server; None outside Linux, or if the server was started in other circumstances."""
    global _server
    if not sys.platform.startswith("linux"):
        return None
    environment = {name: value for name, value in os.environ.items() if name not in _MAY_DIFFER}
    try:
        now = environment, Path.cwd()
    except OSError:  # the working directory was deleted
        return None
    context = multiprocessing.get_context("forkserver")
    if _server is None:
        context.set_forkserver_preload(_LIBRARIES)
        _server = now
    return context if _server == now else None


def _has_accelerator(context: Context) -> bool:
    """Whether torch has an accelerator here; if this process has not loaded torch, a worker is asked."""
    return _accelerated() if "torch" in sys.modules else call_in_worker(context, _accelerated)


def _accelerated() -> bool:
    import torch

    return torch.accelerator.is_available()

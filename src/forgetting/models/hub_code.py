"""Prevents importing a library from running code from the Hub."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from contextlib import suppress


def import_without_hub_code() -> None:
    """Stop bitsandbytes from fetching code from the Hub.

    When it is imported, which PEFT does, it asks the package `kernels` for a kernel and runs it, on CPUs with
    AVX512-BF16 (0.50.2). If `kernels` is not installed, it prints a warning that no user needs.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if "bitsandbytes" in sys.modules or any(importlib.util.find_spec(n) is None for n in ("bitsandbytes", "kernels")):
        return
    held = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]  # the import statement then fails
    try:
        with suppress(Exception):  # a broken installation is reported where it is needed
            importlib.import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        if held is not None:
            sys.modules["kernels"] = held

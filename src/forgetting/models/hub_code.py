"""No program from the Hub runs because a library was imported."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from contextlib import suppress


def import_without_hub_code() -> None:
    """Have bitsandbytes fetch no program from the Hub.

    While it is imported, which PEFT does, it asks the package `kernels` for one and runs it, on CPUs with AVX512-BF16
    (0.50.2). Where `kernels` is not installed it says so in a warning that concerns nobody.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if "bitsandbytes" in sys.modules or any(importlib.util.find_spec(n) is None for n in ("bitsandbytes", "kernels")):
        return
    held = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]  # the import statement then fails
    try:
        with suppress(Exception):  # a broken one is named where it is needed
            importlib.import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        if held is not None:
            sys.modules["kernels"] = held

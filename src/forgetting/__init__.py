"""What did fine-tuning make my language model forget, what will it cost next time, and what actually helps?

Python mirrors the commands: `forgetting.study(...)`, `forgetting.measure(...)`, `forgetting.fit(...)` and
`forgetting.plan(...)`; `forgetting.ForgettingCallback` measures during a training of your own.
"""

from __future__ import annotations

import importlib
from typing import Any

from .mirror import FUNCTIONS

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: importing forgetting itself imports no torch."""
    if name in FUNCTIONS:
        return importlib.import_module(f"forgetting.{name}")
    if name == "ForgettingCallback":
        return importlib.import_module("forgetting.measure.callback").ForgettingCallback
    raise AttributeError(f"module 'forgetting' has no attribute '{name}'")

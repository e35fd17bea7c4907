"""What did fine-tuning make my language model forget, what will it cost next time, and what actually helps?

Python mirrors the commands: `forgetting.study(...)`, `forgetting.measure(...)`, `forgetting.fit(...)` and
`forgetting.plan(...)`; `forgetting.ForgettingCallback` measures during a training of your own.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_FUNCTIONS = {
    "measure": "forgetting.measuring.measure",
    "study": "forgetting.studies.conclude",
    "fit": "forgetting.analysis.api",
    "plan": "forgetting.analysis.api",
    "compare": "forgetting.analysis.api",
    "ForgettingCallback": "forgetting.measuring.callback",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: importing forgetting itself imports no torch."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'forgetting' has no attribute '{name}'")

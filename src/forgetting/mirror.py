"""Python mirrors the commands: `forgetting.measure(...)` is the function of the room of that name.

A room and its main function share a name (measure, fit, plan, study), and Python binds a package's attribute to the
room once anything in it is imported. So the room itself is callable: the same name serves both.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

FUNCTIONS = {
    "measure": ("forgetting.instrument", "measure"),
    "study": ("forgetting.api", "study"),
    "fit": ("forgetting.api", "fit"),
    "plan": ("forgetting.api", "plan"),
    "compare": ("forgetting.api", "compare"),
}
"""Room -> where the function is that a call of the room means."""


class _CallableRoom(ModuleType):
    """A module that can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, name = FUNCTIONS[self.__name__.removeprefix("forgetting.")]
        return getattr(importlib.import_module(module), name)(*args, **kwargs)


def make_callable(room: str) -> None:
    """Let the module `room`, such as `forgetting.fit`, be called as the function of FUNCTIONS."""
    sys.modules[room].__class__ = _CallableRoom

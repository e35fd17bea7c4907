"""Finds required packages that are not installed, and how to install them. Uses only the standard library."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import NoReturn

TOO_SMALL = ("failed to map segment", "annot allocate memory")
"""What the linker reports when there is no memory to load a library."""
MODULES = {"pyyaml": "yaml"}
"""Distributions whose module has a different name."""


def module_of(distribution: str) -> str:
    """The module that one of our required distributions installs."""
    name = re.sub(r"[-.]+", "_", distribution).lower()
    return MODULES.get(name, name)


def found(module: str) -> bool:
    """Whether a module can be found; does not import it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def needed() -> dict[str, str]:
    """What forgetting itself requires, as module -> pip requirement. Empty if forgetting is not installed."""
    try:
        lines = metadata.requires("forgetting") or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = [line.split(";")[0].strip() for line in lines if "extra ==" not in line]
    return {module_of(re.split(r"[^\w.-]", line, maxsplit=1)[0]): line for line in requirements}


def install(*modules: str) -> str:
    """The command that installs modules."""
    known = needed()
    return " ".join(["pip install", *(f"'{known.get(module, module)}'" for module in modules)])


def note() -> str:
    """One line that names every missing required package; empty if none is missing."""
    absent = [module for module in needed() if not found(module)]
    return f"note: not installed: {', '.join(absent)}; run: {install(*absent)}\n" if absent else ""


def leave(error: ImportError) -> NoReturn:
    """Exit with one line that says what could not be imported.

    Raises:
        ImportError: the module is our own, which is a defect of ours.
    """
    modules = [(cause.name or "").split(".")[0] for cause in _causes(error)]
    if "forgetting" in modules:
        raise error
    absent = next((module for module in reversed(modules) if module and not found(module)), None)
    if any(words in str(cause) for cause in _causes(error) for words in TOO_SMALL):
        line = "out of memory while packages were loaded"
    elif absent is not None:
        line = f"{absent} is not installed, and this command needs it; run: {install(absent)}"
    else:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        line = f"a package cannot be loaded: {said}; `forgetting doctor` shows which versions are needed"
    sys.stderr.write(f"error: {line}\n")
    sys.exit(1)


def _causes(error: ImportError) -> Iterator[ImportError]:
    """The error and its causes: transformers names its own class in the error, and the package only in the cause."""
    cause: BaseException | None = error
    while isinstance(cause, ImportError):
        yield cause
        cause = cause.__cause__ or cause.__context__

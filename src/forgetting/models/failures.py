"""Turns a library's many errors about a model into one line that names the model and says what to do."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import ForgettingError, UsageError
from ..files import no_memory

SAID = 300
"""Maximum characters shown of a library's message."""


class CodeNeededError(UsageError):
    """A model needs Python code that comes with it, which was not allowed."""


@contextmanager
def explained(name: str, what: str) -> Iterator[None]:
    """Turn any error that a library raises about a model into one of ours.

    Args:
        name: the model.
        what: what failed: `cannot be loaded`, `cannot be run`.

    Raises:
        UsageError: a file, configuration or package is wrong or missing.
        ForgettingError: memory ran out.
    """
    try:
        yield
    except ForgettingError:
        raise
    except Exception as error:  # libraries raise anything; our own code is outside
        raise _as_ours(name, what, error) from None
    except BaseException as error:
        if not panicked(error):
            raise
        raise UsageError(f"{name}: {what}: {first_line(error)}") from None


@contextmanager
def without_panics() -> Iterator[None]:
    """Inside, suppress what a panicking Rust library writes to standard error, since we show its error ourselves.

    The library writes to the descriptor directly. Anything else written there is held until it is clear that there was
    no panic.
    """
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing is shown anyway
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        said = True
        try:
            yield
        except BaseException as error:
            said = not panicked(error)
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            if said and (rest := held.read()):
                with suppress(OSError):
                    os.write(2, rest)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' loading reports; we give them as errors and notices."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def panicked(error: BaseException) -> bool:
    """Whether a Rust library, such as tokenizers, panicked: its exception is not a subclass of Exception."""
    return type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """The most informative line of an error, at most SAID characters.

    This is the first line, plus the following ones if it ends in a colon, or the line about shapes that do not match.
    """
    if isinstance(error, KeyError) and len(error.args) == 1:  # Python shows its text in quotes
        text = str(error.args[0])
        if " " not in text:
            return f"no '{text[:SAID]}'"
    else:
        text = str(error)
    lines = [line.strip() for line in _unquoted(text.strip()).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    mismatch = next((line for line in lines if "size mismatch" in line), None)
    first = mismatch or (" ".join(lines) if lines[0].endswith(":") else lines[0])
    if isinstance(error, ArithmeticError | AttributeError | IndexError):  # alone, such a text says too little
        first = f"{type(error).__name__}: {first}"
    return first if len(first) <= SAID else first[: SAID - 3] + "..."


def _unquoted(text: str) -> str:
    """A text without quotes around the whole of it."""
    whole = len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text.count(text[0]) == 2
    return text[1:-1].strip() if whole else text


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on any device."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or no_memory(error)


def _as_ours(name: str, what: str, error: Exception) -> Exception:
    first = first_line(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    if out_of_memory(error):
        return ForgettingError(f"{name}: out of memory ({first})")
    if type(error).__module__.startswith("safetensors"):
        return UsageError(f"{name}: damaged weights: {first}")
    if "custom code" in first:
        return CodeNeededError(
            f"{name}: needs Python code that comes with it, which does not run unless you allow it with "
            "trust_remote_code (--trust-remote-code); read the code first"
        )
    if "Unrecognized configuration class" in first:
        return UsageError(f"{name}: not a causal language model in transformers ({_class_of(first)})")
    if isinstance(error, ImportError):
        return UsageError(f"{name}: {what}: a package is missing: {first}")
    return UsageError(f"{name}: {what}: {first}")


def _class_of(text: str) -> str:
    return text.split("'")[1].rpartition(".")[2] if text.count("'") >= 2 else text

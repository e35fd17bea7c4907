"""A library's many errors on a model as one line that names the model and what to do."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import ForgettingError, UsageError
from ..files import no_memory

SAID = 300
"""Characters of a library's message that are shown."""


class CodeNeededError(UsageError):
    """A model needs Python code that comes with it, which was not allowed."""


@contextmanager
def explained(name: str, what: str) -> Iterator[None]:
    """Turn whatever a library raises on a model into one error of ours.

    Args:
        name: the model.
        what: what it then is: `cannot be loaded`, `cannot be run`.

    Raises:
        UsageError: a file, configuration or package that is wrong or missing.
        ForgettingError: memory ran out.
    """
    try:
        yield
    except ForgettingError:
        raise
    except Exception as error:  # libraries raise all there is; our own code is outside
        raise _as_ours(name, what, error) from None
    except BaseException as error:
        if not panicked(error):
            raise
        raise UsageError(f"{name}: {what}: {first_line(error)}") from None


@contextmanager
def without_panics() -> Iterator[None]:
    """Inside, what a library in Rust writes on standard error when it gives up is left out: its error is shown by us.

    It writes to the descriptor itself; whatever else was written there is written once it is known that it did not
    give up.
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


def panicked(error: BaseException) -> bool:
    """Whether a library in Rust, as that of tokenizers, gave up: its exception is none of Python's Exceptions."""
    return type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """What an error's text says most with, in one line of at most SAID characters.

    That is its first line, with those after it where it ends in a colon, or the line on shapes that do not fit.
    """
    if isinstance(error, KeyError) and len(error.args) == 1:  # Python shows it in quotes
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
    if isinstance(error, ArithmeticError | AttributeError | IndexError):  # bare, such a text names nothing
        first = f"{type(error).__name__}: {first}"
    return first if len(first) <= SAID else first[: SAID - 3] + "..."


def _unquoted(text: str) -> str:
    """A text without the quotes around the whole of it, if there are any."""
    whole = len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text.count(text[0]) == 2
    return text[1:-1].strip() if whole else text


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or no_memory(error)


def _as_ours(name: str, what: str, error: Exception) -> Exception:
    first = first_line(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    if out_of_memory(error):
        return ForgettingError(f"{name}: memory is too small for it ({first})")
    if type(error).__module__.startswith("safetensors"):
        return UsageError(f"{name}: damaged weights: {first}")
    if "custom code" in first:
        return CodeNeededError(
            f"{name}: needs Python code that comes with it, which is not run unless you say so with "
            "trust_remote_code (--trust-remote-code); read the code first"
        )
    if "Unrecognized configuration class" in first:
        return UsageError(f"{name}: not a causal language model of transformers ({_class_of(first)})")
    if isinstance(error, ImportError):
        return UsageError(f"{name}: {what}: a package is missing: {first}")
    return UsageError(f"{name}: {what}: {first}")


def _class_of(text: str) -> str:
    return text.split("'")[1].rpartition(".")[2] if text.count("'") >= 2 else text

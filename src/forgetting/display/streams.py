"""Standard streams: what is said on standard error cannot end the work, and what no terminal can show is replaced.

A closed or dead standard error (`2>&-`, a full disk or a reader that has gone behind it) loses what is said there and
nothing else. A result that standard output does not take is an error of its own (`WriteError`).
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import IO, Any, cast

from ..errors import ForgettingError

_PLACES = ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDWR))
"""The standard descriptors, and how to open nothing in the place of a closed one: reading the first and writing to the
second still fail, and no file that is opened later takes one of their numbers."""


class WriteError(ForgettingError):
    """Standard output did not take the result."""


class _Descriptor(io.RawIOBase):
    """A standard descriptor to write to.

    Attributes:
        drops: what is not taken is dropped; else it is a WriteError, or where the reader has gone a BrokenPipeError.
    """

    def __init__(self, number: int, *, drops: bool) -> None:
        self.number, self.drops = number, drops

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor's number."""
        return self.number

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        return os.isatty(self.number)

    def write(self, data: Any) -> int:
        """Write all of it.

        Raises:
            WriteError, BrokenPipeError: it is not taken.
        """
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                left = left[os.write(self.number, left) :]
        except OSError as error:
            if not self.drops:
                if error.errno == errno.EPIPE:
                    raise
                raise WriteError(f"standard output: the result cannot be written: {error.strerror}") from None
        return size


def make_safe() -> None:
    """Put such streams in the place of this process's own; those that somebody else has put there stay."""
    for number, flags in _PLACES:
        _fill(number, flags)
    if sys.stderr is sys.__stderr__:
        # each piece is written at once: nothing is held back that a signal, or the end of the process, would lose
        sys.stderr = _text(_Descriptor(2, drops=True), sys.stderr, "backslashreplace")
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(io.BufferedWriter(_Descriptor(1, drops=False)), sys.stdout, "replace")


def _text(binary: io.RawIOBase | io.BufferedWriter, before: IO[str] | None, errors: str) -> io.TextIOWrapper:
    """A stream of text over one of bytes; over a descriptor itself each piece of text is written at once."""
    encoding = getattr(before, "encoding", None) or "utf-8"
    raw, shown = isinstance(binary, io.RawIOBase), binary.isatty()
    taken = cast("IO[bytes]", binary)
    return io.TextIOWrapper(taken, encoding=encoding, errors=errors, line_buffering=shown, write_through=raw)


def _fill(number: int, flags: int) -> None:
    """Open nothing in the place of a closed descriptor."""
    try:
        os.fstat(number)
    except OSError:
        with suppress(OSError):
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)


def leave_stdout() -> None:
    """Try nothing more with standard output, which has failed; the end of the process would flush it again."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

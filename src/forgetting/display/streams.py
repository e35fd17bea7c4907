"""Standard streams: a failing standard error cannot stop the work, and unprintable characters are replaced.

If standard error is closed or broken (`2>&-`, a full disk, a reader that has exited), only the messages are lost. If
standard output cannot take a result, that is an error of its own (`WriteError`).
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
"""The standard descriptors, and how to open a placeholder for a closed one: reading standard input and writing standard
output still fail, and no file opened later gets one of their numbers."""


class WriteError(ForgettingError):
    """Standard output did not take the result."""


class _Descriptor(io.RawIOBase):
    """A standard descriptor to write to.

    Attributes:
        drops: whether to drop what cannot be written; otherwise `write` raises an error.
    """

    def __init__(self, number: int, *, drops: bool) -> None:
        self.number, self.drops = number, drops

    def writable(self) -> bool:
        """Always true."""
        return True

    def fileno(self) -> int:
        """The descriptor's number."""
        return self.number

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self.number)

    def write(self, data: Any) -> int:
        """Write everything.

        Raises:
            WriteError: the data cannot be written.
            BrokenPipeError: the reader has exited.
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
    """Replace this process's standard output and error with safe streams, unless someone else has replaced them.

    Closed standard descriptors, that of standard input included, get placeholders.
    """
    for number, flags in _PLACES:
        _fill(number, flags)
    if sys.stderr is sys.__stderr__:
        # write each piece at once, so that a signal or the end of the process loses nothing
        sys.stderr = _text(_Descriptor(2, drops=True), sys.stderr, "backslashreplace")
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(io.BufferedWriter(_Descriptor(1, drops=False)), sys.stdout, "replace")


def _text(binary: io.RawIOBase | io.BufferedWriter, before: IO[str] | None, errors: str) -> io.TextIOWrapper:
    """A text stream over a byte stream; if that is unbuffered, each piece of text is written at once."""
    encoding = getattr(before, "encoding", None) or "utf-8"
    raw, shown = isinstance(binary, io.RawIOBase), binary.isatty()
    taken = cast("IO[bytes]", binary)
    return io.TextIOWrapper(taken, encoding=encoding, errors=errors, line_buffering=shown, write_through=raw)


def _fill(number: int, flags: int) -> None:
    """Open a placeholder for a closed descriptor."""
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
    """Give up on standard output after it failed; otherwise the end of the process would flush it again."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

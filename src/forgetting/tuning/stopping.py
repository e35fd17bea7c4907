"""A request to stop, for example by a signal: the current run ends after its next complete step, with a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ForgettingError

_waiting = 0
_number: int | None = None


class StoppedError(ForgettingError):
    """The work stopped on request, with a checkpoint; the exit code is the shell's for the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.exit_code = 128 + number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


@contextmanager
def at_next_step() -> Iterator[None]:
    """Inside, a request waits for the next complete step; leaving the outermost block clears it."""
    global _waiting, _number
    _waiting += 1
    try:
        yield
    finally:
        _waiting -= 1
        if not _waiting:
            _number = None


def waits() -> bool:
    """Whether anything would react to a request."""
    return _waiting > 0


def request(number: int = signal.SIGTERM) -> None:
    """Request a stop; the first signal counts."""
    global _number
    _number = number if _number is None else _number


def requested() -> int | None:
    """The signal that requested a stop, or None."""
    return _number


def check() -> None:
    """Stop here if a stop was requested.

    Raises:
        StoppedError: it was.
    """
    if _number is not None:
        raise StoppedError(_number)

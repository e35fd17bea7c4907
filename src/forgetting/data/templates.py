"""Runs chat templates within limits: a template is a program by the model's author and may not terminate.

Jinja's sandbox keeps a template away from Python, but limits neither time nor memory.
"""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import files
from ..errors import UsageError

SECONDS = 10.0
"""Seconds allowed for one conversation; a normal template takes milliseconds."""
MEMORY = 2**31
"""Bytes of memory allowed for one conversation."""


class TemplateLimitError(UsageError):
    """A template takes too long or too much memory."""


class _LateError(BaseException):
    """Raised inside a template; not an Exception, which libraries would convert."""


@contextmanager
def bounded(where: str) -> Iterator[None]:
    """Stop a template that is rendered in the block if it takes too long or too much memory.

    In the main thread a signal stops it, even inside a computation with large numbers. In other threads it is stopped
    between two Python instructions.

    Args:
        where: the template, for messages.

    Raises:
        TemplateLimitError: names the limit.
    """
    try:
        with files.memory_bound(MEMORY), _deadline():
            yield
    except _LateError:
        raise TemplateLimitError(f"{where} takes more than {SECONDS:g} s for one conversation") from None
    except MemoryError:
        raise TemplateLimitError(f"{where} takes more than {MEMORY:,} bytes of memory for one conversation") from None


def checked(text: str, where: str) -> str:
    """Check and return the text that a template rendered.

    Raises:
        TemplateLimitError: more than MAX_LINE characters.
    """
    if len(text) > files.MAX_LINE:
        raise TemplateLimitError(f"{where} writes {len(text):,} characters; at most {files.MAX_LINE:,} are allowed")
    return text


@contextmanager
def _deadline() -> Iterator[None]:
    main = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    with _by_signal() if main else _by_thread():
        yield


@contextmanager
def _by_signal() -> Iterator[None]:
    over = False

    def late(*_: Any) -> None:
        if not over:
            raise _LateError

    posix: Any = signal  # the alarm exists on POSIX systems only
    before = posix.signal(posix.SIGALRM, late)
    began, (left, every) = time.monotonic(), posix.setitimer(posix.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        over = True
        posix.setitimer(posix.ITIMER_REAL, 0)
        posix.signal(posix.SIGALRM, posix.SIG_DFL if before is None else before)
        if left:  # someone else's alarm, which continues
            posix.setitimer(posix.ITIMER_REAL, max(left - (time.monotonic() - began), 0.001), every)


@contextmanager
def _by_thread() -> Iterator[None]:
    thread, lock, over, fired = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False, False

    def late() -> None:
        nonlocal fired
        with lock:
            if not over:
                fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_LateError))

    timer = threading.Timer(SECONDS, late)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            over = True
        if fired:  # if it was not raised yet, do not raise it later
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)
    if fired:
        raise _LateError

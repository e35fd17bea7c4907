"""Calls a function in a worker process, so that this process need not load the libraries that the function uses."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing.process import BaseProcess
from typing import Any

from ...errors import ForgettingError
from .. import own_code
from .base import PipeEnd, R
from .worker import Context, WorkerProcess, ending


@dataclass(frozen=True)
class _Returned:
    value: Any


@dataclass(frozen=True)
class _Raised:
    error: BaseException


@dataclass(frozen=True)
class _Warned:
    message: Warning
    category: type[Warning]
    filename: str
    lineno: int


def call_in_worker(context: Context, function: Callable[[], R]) -> R:
    """Call a function in a new process; what it logs, warns of and raises appears here as if it were called here.

    Args:
        context: starts the process.
        function: must be picklable, as must what it returns.

    Raises:
        ForgettingError: the process ended before the function returned, or the code of this package changed.
        BaseException: what the function raised; a ForgettingError instead if that cannot be pickled.
    """
    own_code.check_same()  # a new process would import the changed code
    ours, theirs = context.Pipe()
    try:
        process = _started(context, function, theirs)
    except (EOFError, OSError):  # the fork server was killed
        process = _started(multiprocessing.get_context("spawn"), function, theirs)
    theirs.close()  # so that the worker's death ends the pipe
    try:
        while True:
            try:
                told = ours.recv()
            except (EOFError, OSError):
                process.join(timeout=10)
                raise ForgettingError(f"a worker process ended before its work ({ending(process)})") from None
            if isinstance(told, _Returned):
                result: R = told.value
                return result
            if isinstance(told, _Raised):
                raise told.error
            _repeat(told)
    finally:
        process.kill()
        process.join(timeout=10)
        ours.close()


def _started(context: Context, function: Callable[[], object], pipe: PipeEnd) -> BaseProcess:
    process = context.Process(target=_answer, args=(function, pipe), daemon=True)
    process.start()
    return process


def _repeat(told: logging.LogRecord | _Warned) -> None:
    """Log the other process's record, or issue its warning, in this process."""
    if isinstance(told, _Warned):
        warnings.warn_explicit(told.message, told.category, told.filename, told.lineno)
        return
    logger = logging.getLogger(told.name)
    if logger.isEnabledFor(told.levelno):
        logger.handle(told)


class _Messages(QueueHandler):
    """Sends log records, warnings and results to the parent, one at a time."""

    def __init__(self, pipe: PipeEnd) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # only `enqueue` would use a queue
        self.pipe, self.one = pipe, threading.Lock()

    def send(self, told: object) -> None:
        with self.one:
            self.pipe.send(told)

    def enqueue(self, record: logging.LogRecord) -> None:
        self.send(record)

    def warned(self, message: Warning, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        self.send(_Warned(message, category, filename, lineno))


def _answer(function: Callable[[], object], pipe: PipeEnd) -> None:
    """Call the function and send its result or error to the parent; torch keeps its number of threads."""
    WorkerProcess(pipe, None)
    messages = _Messages(pipe)
    logger = logging.getLogger(__name__.partition(".")[0])
    logger.handlers, logger.propagate = [messages], False
    warnings.showwarning = messages.warned  # type: ignore[assignment]
    try:
        told: _Returned | _Raised = _Returned(function())
    except BaseException as error:
        told = _Raised(_picklable(error))
    messages.send(told)


def _picklable(error: BaseException) -> BaseException:
    """The error, with its traceback as a note, unless it does not survive pickling."""
    if not isinstance(error, ForgettingError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):  # noqa: S301 - made here
            return error
    except Exception as unusual:
        del unusual
    return ForgettingError(f"{type(error).__name__}: {error}")

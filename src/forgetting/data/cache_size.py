"""The user's cache stays within a size: what was used least recently goes, and nothing that a process has in hand.

A process has a shared lock on each file for as long as it has what it read of it (`Hold`); a file is removed under an
exclusive one, and never where its file system has no locks. On Windows, whose files cannot be removed while they are
mapped, what was used within a day stays, too.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import UsageError

LIMIT = "FORGETTING_CACHE_GB"
"""The environment variable that says how large the user's cache may grow."""
DEFAULT_GB = 20.0
DAY = 24 * 3600
"""Seconds after which a file that is half written belongs to a process that was killed."""


class Hold:
    """A file of a cache in use. It is let go of when the object, or its process, ends."""

    def __init__(self, path: Path) -> None:
        """Take hold.

        Raises:
            OSError: no such file.
            BlockingIOError: it is being removed.
        """
        self._file = _shared(path)
        with suppress(OSError):  # another user's
            os.utime(path)  # when it was used last

    def __del__(self) -> None:
        """Let go."""
        if (file := getattr(self, "_file", None)) is not None:
            os.close(file)


def folder() -> Path:
    """`$FORGETTING_CACHE`, else `forgetting` in the user's cache directory."""
    if given := os.environ.get("FORGETTING_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forgetting"


def limit() -> float:
    """Bytes that the user's cache may hold: `$FORGETTING_CACHE_GB`, else 20 GB.

    Raises:
        UsageError: the variable is no number of gigabytes.
    """
    given = os.environ.get(LIMIT, "").strip()
    try:
        most = float(given or DEFAULT_GB)
    except ValueError:
        most = -1.0
    if not 0 <= most < float("inf"):
        raise UsageError(f"{LIMIT}: got {given!r:.40}; a number of gigabytes, 0 or more")
    return 1e9 * most


def held_bytes(place: Path) -> int:
    """Bytes of the files of a cache; 0 where there is none."""
    return sum(amount for _, amount, _ in _files(place))


def trim(place: Path, most: float, spared: Path) -> None:
    """Remove the files used least recently until the others are within a size.

    Args:
        place: the folder.
        most: bytes.
        spared: a file that stays, as do those in use.
    """
    total = 0
    found = []
    for used, amount, path in _files(place):
        if path.name.startswith("."):
            if time.time() - used > DAY:
                _removed(path)
            continue
        total += amount
        found.append((used, amount, path))
    for used, amount, path in sorted(found):
        if total <= most:
            return
        is_recent = os.name == "nt" and time.time() - used < DAY
        if path != spared and not is_recent and _removed(path):
            total -= amount


def _files(place: Path) -> list[tuple[float, int, Path]]:
    """When each was used last, its bytes, and where it lies."""
    found = []
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if (".safetensors" in entry.name or ".jsonl" in entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):  # another process removed it
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
    return found


def _removed(path: Path) -> bool:
    """Remove a file that nobody uses; whether that was done."""
    with suppress(OSError), _alone(path):
        path.unlink()
        path.with_suffix(".lock").unlink(missing_ok=True)
        return True
    return False


def _shared(path: Path) -> int | None:
    """An open file with a shared lock; on Windows none, where an open file could not be replaced.

    Raises:
        OSError: it cannot be opened.
        BlockingIOError: it is being removed.
    """
    if os.name == "nt":
        return None
    fcntl: Any = importlib.import_module("fcntl")  # of POSIX systems alone
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise
    except OSError:  # no locks there, so that it is not removed
        pass
    return file


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Inside, nobody else uses the file; on Windows none that is open or mapped can be removed.

    Raises:
        OSError: somebody does, or there are no locks.
    """
    if os.name == "nt":
        yield
        return
    fcntl: Any = importlib.import_module("fcntl")
    file = os.open(path, os.O_RDWR)  # over NFS, an exclusive lock needs a file that may be written
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)

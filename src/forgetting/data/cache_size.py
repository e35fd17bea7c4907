"""Keeps the user's cache within a size limit: removes the least recently used files, but never one in use.

A process holds a shared lock on each file that it reads from (`Hold`). A file is removed only under an exclusive lock,
so never on a file system without locks. Windows cannot remove mapped files, so on Windows, files used within a day
also stay.
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
"""The environment variable that limits the size of the user's cache."""
DEFAULT_GB = 20.0
DAY = 24 * 3600
"""Seconds after which a half-written file is assumed to belong to a killed process."""


class Hold:
    """Marks a cache file as in use until the object is deleted or its process ends."""

    def __init__(self, path: Path) -> None:
        """Take the shared lock.

        Raises:
            OSError: no such file.
            BlockingIOError: it is being removed.
        """
        self._file = _shared(path)
        with suppress(OSError):  # another user's
            os.utime(path)  # record the time of use

    def __del__(self) -> None:
        """Release the lock."""
        if (file := getattr(self, "_file", None)) is not None:
            os.close(file)


def folder() -> Path:
    """`$FORGETTING_CACHE`, or `forgetting` in the user's cache directory."""
    if given := os.environ.get("FORGETTING_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forgetting"


def limit() -> float:
    """Maximum bytes of the user's cache: `$FORGETTING_CACHE_GB`, or 20 GB.

    Raises:
        UsageError: the variable is not a number of gigabytes.
    """
    given = os.environ.get(LIMIT, "").strip()
    try:
        most = float(given or DEFAULT_GB)
    except ValueError:
        most = -1.0
    if not 0 <= most < float("inf"):
        raise UsageError(f"{LIMIT}: got {given!r:.40}; give a number of gigabytes, 0 or more")
    return 1e9 * most


def held_bytes(place: Path) -> int:
    """Total bytes of a cache's files; 0 if it does not exist."""
    return sum(amount for _, amount, _ in _files(place))


def trim(place: Path, most: float, spared: Path) -> None:
    """Remove the least recently used files until the rest fits within a size.

    Args:
        place: the folder.
        most: maximum bytes.
        spared: a file to keep, like those in use.
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
    """Time of last use, bytes and path of each file."""
    found = []
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if (".safetensors" in entry.name or ".jsonl" in entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):  # another process removed it
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
    return found


def _removed(path: Path) -> bool:
    """Remove a file if nobody uses it; returns whether it was removed."""
    with suppress(OSError), _alone(path):
        path.unlink()
        path.with_suffix(".lock").unlink(missing_ok=True)
        return True
    return False


def _shared(path: Path) -> int | None:
    """An open file with a shared lock; None on Windows, where an open file cannot be replaced.

    Raises:
        OSError: it cannot be opened.
        BlockingIOError: it is being removed.
    """
    if os.name == "nt":
        return None
    fcntl: Any = importlib.import_module("fcntl")  # POSIX only
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise
    except OSError:  # no locks there, so it will never be removed
        pass
    return file


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a file exclusively inside the block; on Windows open or mapped files cannot be removed anyway.

    Raises:
        OSError: somebody uses it, or there are no locks.
    """
    if os.name == "nt":
        yield
        return
    fcntl: Any = importlib.import_module("fcntl")
    file = os.open(path, os.O_RDWR)  # on NFS an exclusive lock needs a writable descriptor
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)

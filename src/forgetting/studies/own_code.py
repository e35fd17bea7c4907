"""Checks that this package's files have not changed since this process started.

Modules are imported when first needed. After a `git pull` or a new installation, a running study would therefore mix
two versions, and give wrong numbers or confusing errors. It stops instead; the same command resumes it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import ForgettingError

_FOLDER = Path(__file__).parents[1]


def _times() -> dict[str, tuple[int, int]]:
    """Size and modification time (ns) of each module."""
    found = {}
    for path in _FOLDER.rglob("*.py"):
        status = path.stat()
        found[path.relative_to(_FOLDER).as_posix()] = (status.st_size, status.st_mtime_ns)
    return found


def _hashes() -> dict[str, str]:
    """SHA-256 of each module's file."""
    return {
        path.relative_to(_FOLDER).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in _FOLDER.rglob("*.py")
    }


_begun = _times(), _hashes()
"""As of the import of this module; in a forked worker, as of the import in the process that it was forked from."""


def check_same() -> None:
    """Refuse to continue with changed code.

    Raises:
        ForgettingError: names a module that changed.
    """
    times, hashes = _begun
    try:
        if _times() == times or (now := _hashes()) == hashes:
            return
    except OSError:  # a module was deleted meanwhile
        now = {}
    changed = min(name for name in {*hashes, *now} if hashes.get(name) != now.get(name))
    raise ForgettingError(
        f"the code of this program changed while it ran ({changed}), and two versions must not mix; everything "
        "measured is kept: run the same command again"
    )

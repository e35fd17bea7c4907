"""Whether this package's files are still those that this process began with.

Modules are loaded when they are first needed. After a `git pull`, or a new installation, a study that goes on would mix
two versions: numbers of neither, or an error that nobody can read. It stops instead, and the same command goes on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import ForgettingError

_FOLDER = Path(__file__).parents[1]


def _times() -> dict[str, tuple[int, int]]:
    """Size and time of change of each module."""
    found = {}
    for path in _FOLDER.rglob("*.py"):
        status = path.stat()
        found[path.relative_to(_FOLDER).as_posix()] = (status.st_size, status.st_mtime_ns)
    return found


def _hashes() -> dict[str, str]:
    """A hash of each module's text."""
    return {
        path.relative_to(_FOLDER).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in _FOLDER.rglob("*.py")
    }


_begun = _times(), _hashes()
"""When this process loaded the module; in a worker, when what it was forked from did."""


def check_same() -> None:
    """Refuse to go on with code that has changed.

    Raises:
        ForgettingError: names a module that is another now.
    """
    times, hashes = _begun
    try:
        if _times() == times or (now := _hashes()) == hashes:
            return
    except OSError:  # a module went away between two looks
        now = {}
    changed = min(name for name in {*hashes, *now} if hashes.get(name) != now.get(name))
    raise ForgettingError(
        f"the code of this program changed while it ran ({changed}), and two versions must not mix; everything "
        "measured is kept: run the same command again"
    )

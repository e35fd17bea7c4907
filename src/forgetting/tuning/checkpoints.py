"""A run's checkpoints: marked when complete, checked before use; the last two are kept.

The mark lists every file with its size and digest. A checkpoint without a mark was interrupted while being written; one
that differs from its mark was damaged later. Checkpoints are ordered by step number, never by time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UsageError
from ..files import write_atomically

MARK = "complete"
KEEP = 2
"""How many complete checkpoints to keep: if one is damaged, there is one before it."""


@dataclass(frozen=True)
class Found:
    """Where a run resumes.

    Attributes:
        path: the newest complete checkpoint, or None.
        step: its step; -1 for none.
        state: what was given to `mark`.
        notices: what was damaged, in words.
    """

    path: Path | None = None
    step: int = -1
    state: dict[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def mark(checkpoint: Path, **state: Any) -> None:
    """Mark a checkpoint as complete, then delete all but the last KEEP.

    Args:
        checkpoint: `checkpoint-STEP`.
        state: stored with it, for `newest`.

    Raises:
        UsageError: it is behind a link, or contains one.
    """
    files.refuse_link(checkpoint, checkpoint.parent.parent)
    files.refuse_links(checkpoint)
    written = {str(file.relative_to(checkpoint)): _digest(file) for file in _files(checkpoint)}
    write_atomically(checkpoint / MARK, json.dumps({"files": written, "state": state}), parents=False)
    for old in _by_step(checkpoint.parent)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path) -> Found:
    """The newest complete checkpoint of a run; damaged or unfinished newer ones are deleted."""
    notices: list[str] = []
    for path in _by_step(folder):
        if (path / MARK).exists():
            wrong, state = _verify(path)
            if wrong is None:
                return Found(path, _step(path), state, _ended(notices, f"resumed from step {_step(path)}"))
            notices.append(f"{path.name} is damaged ({wrong})")
        shutil.rmtree(path)
    return Found(notices=_ended(notices, "started again at step 0"))


def drop_unfinished(folder: Path) -> None:
    """Delete incomplete checkpoints, as left by a full disk."""
    for path in _by_step(folder):
        if not (path / MARK).exists():
            shutil.rmtree(path, ignore_errors=True)


def drop_but(folder: Path, step: int | None) -> None:
    """Delete all checkpoints except the one at a step; None deletes all."""
    for path in _by_step(folder):
        if _step(path) != step:
            shutil.rmtree(path, ignore_errors=True)
    if step is None:
        shutil.rmtree(folder, ignore_errors=True)


def _ended(notices: list[str], how: str) -> tuple[str, ...]:
    return (f"{'; '.join(notices)}: {how}",) if notices else ()


def _verify(checkpoint: Path) -> tuple[str | None, dict[str, Any]]:
    """How a marked checkpoint differs from its mark, in words, or None; and its stored state."""
    try:
        record = files.parse_json(files.check_plain(checkpoint / MARK).read_bytes(), "")
        listed = {name: (int(size), str(digest)) for name, (size, digest) in record["files"].items()}
        state = dict(record["state"])
    except (UsageError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return "its list of files cannot be read", {}
    there = {str(file.relative_to(checkpoint)): file for file in _files(checkpoint)}
    for name, (size, digest) in listed.items():
        if name not in there:
            return f"{name} is missing", state
        if (found := there[name].stat().st_size) != size:
            return f"{name} has {found:,} bytes instead of {size:,}", state
        if _digest(there[name])[1] != digest:
            return f"{name} was changed", state
    return None, state


def _digest(file: Path) -> tuple[int, str]:
    with file.open("rb") as opened:
        return file.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest()


def _files(checkpoint: Path) -> list[Path]:
    return sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != MARK)


def _by_step(folder: Path) -> list[Path]:
    """Checkpoints, newest first.

    Raises:
        UsageError: they are behind a link; callers delete damaged checkpoints.
    """
    files.refuse_link(folder, folder.parent)
    files.refuse_links(folder, deep=False)
    found = [path for path in folder.glob("checkpoint-*") if path.name.rsplit("-", 1)[-1].isdigit()]
    return sorted(found, key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[-1])

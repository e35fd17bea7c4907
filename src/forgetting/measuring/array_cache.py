"""Arrays on disk under a content key: safetensors, checksummed, memory-mapped, written whole or not at all.

A cache can only save time. A file that is stale, damaged or half there is computed again, with a notice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)
KINDS: dict[str, Any] = {"I32": np.int32, "F32": np.float32}
CODES = {np.dtype(kind): code for code, kind in KINDS.items()}
Spec = Mapping[str, tuple[Any, tuple[int, ...]]]
"""Name -> dtype and shape of each array."""
UNKNOWN = "0" * 64


@dataclass(frozen=True)
class Stored:
    """Where the arrays of a file lie. `array` maps one, and the map lives as long as what it returns."""

    path: Path
    spec: Spec
    offsets: Mapping[str, int]

    def array(self, name: str, mode: Any = "r") -> NDArray[Any]:
        """A memory map of one array."""
        kind, shape = self.spec[name]
        return np.memmap(self.path, kind, mode=mode, offset=self.offsets[name], shape=shape)


def usable(folder: Path | None) -> Path | None:
    """The folder, made if it is missing; None, with a notice, where nothing can be written."""
    if folder is None:
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        log.warning("%s: no cache can be written there (%s), measuring without one", folder, error.strerror)
        return None
    return Path(folder)


@contextmanager
def writing(path: Path, spec: Spec, fingerprint: str) -> Iterator[Stored]:
    """A new file whose arrays are filled through maps; on success it is checksummed and renamed to `path`.

    Two processes may write one path at once: each has a file of its own, and the later rename wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            head, stored = _layout(temporary, spec, fingerprint, UNKNOWN)
            file.write(head)
            file.truncate(len(head) + sum(_size(*spec[array]) for array in spec))
        yield stored
        with temporary.open("r+b") as file:
            checksum = _checksum(file, len(head))
            file.seek(0)
            file.write(_layout(temporary, spec, fingerprint, checksum)[0])
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def read(path: Path, spec: Spec, fingerprint: str) -> Stored | None:
    """The stored arrays, checked whole; None where there are none or they are not what is asked for."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > 2**20:
                raise ValueError("header too long")
            meta = json.loads(file.read(size))["__metadata__"]
            head, stored = _layout(path, spec, fingerprint, meta["sha256"])
            file.seek(0)
            sound = file.read(len(head)) == head and _checksum(file, len(head)) == meta["sha256"]
            sound = sound and path.stat().st_size == len(head) + sum(_size(*spec[array]) for array in spec)
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever is wrong with a cache file, it is computed again
        log.warning("%s: damaged cache file (%s), computing it again", path.name, type(error).__name__)
        return None
    if not sound:
        log.warning("%s: stale or damaged cache file, computing it again", path.name)
        return None
    return stored


def _size(kind: Any, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * int(np.dtype(kind).itemsize)


def _layout(path: Path, spec: Spec, fingerprint: str, checksum: str) -> tuple[bytes, Stored]:
    """The safetensors head (8 bytes length, JSON padded to 8) and the places of the arrays after it."""
    header: dict[str, Any] = {"__metadata__": {"fingerprint": fingerprint, "sha256": checksum}}
    at, starts = 0, {}
    for name, (kind, shape) in spec.items():
        size = _size(kind, shape)
        code = CODES[np.dtype(kind)]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, at + size]}
        starts[name] = at
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, Stored(path, spec, {name: len(head) + start for name, start in starts.items()})


def _checksum(file: Any, start: int) -> str:
    """A sha256 of the file from `start` on, read in pieces so that checking maps no memory."""
    file.seek(start)
    digest = hashlib.sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    return digest.hexdigest()

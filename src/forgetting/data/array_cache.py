"""Arrays on disk under a content key: safetensors files, checksummed, memory-mapped, written whole or not at all.

The cache only saves time. A stale, damaged or incomplete file is recomputed, with a notice. If two processes need the
same file at the same time, one computes it and the other waits.

The files are ordinary safetensors files. Two things that the safetensors library cannot do are done here, so that
memory does not grow with the size of the arrays: filling a file's arrays in place, and mapping one array at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import check_plain, replacing
from . import cache_size
from .cache_size import Hold

log = logging.getLogger(__name__)
Spec = Mapping[str, tuple[Any, tuple[int, ...]]]
"""Name -> dtype and shape of each array."""
KINDS: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I32": np.int32,
    "I64": np.int64,
    "F32": np.float32,
    "F64": np.float64,
}
"""The safetensors library's names of dtypes."""
UNKNOWN = "0" * 64
"""Placeholder for a file's checksum while the file is being filled."""


@dataclass(frozen=True)
class Stored:
    """The arrays of a file. `array` maps one; the map lives as long as the returned array.

    Attributes:
        path: the file.
        spec: its arrays.
        offsets: byte offset of each array in the file.
        seconds: how long computing them took; 0 if unknown.
        hold: keeps the file from being removed to free space.
    """

    path: Path
    spec: Spec
    offsets: Mapping[str, int]
    seconds: float = 0.0
    hold: Hold | None = field(default=None, repr=False, compare=False)

    def array(self, name: str, mode: Any = "r") -> NDArray[Any]:
        """A memory map of one array."""
        kind, shape = self.spec[name]
        if 0 in shape:  # mmap refuses an empty map
            return np.zeros(shape, kind)
        return np.memmap(self.path, kind, mode=mode, offset=self.offsets[name], shape=shape)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """A memory map of each array by name."""
        return {name: self.array(name) for name in self.spec}


def default_folder() -> Path:
    """The user's cache; see `cache_size.folder`.

    Raises:
        UsageError: its size limit is not a valid size.
    """
    cache_size.limit()
    return cache_size.folder()


def usable(folder: Path | None) -> Path | None:
    """The folder, created if missing; None, with a notice, if it is not writable."""
    if folder is None:
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        log.warning("%s: cannot write a cache there (%s); measuring without one", folder, error.strerror)
        return None
    return Path(folder)


def kept(path: Path, fingerprint: str, compute: Callable[[], Mapping[str, NDArray[Any]]]) -> Stored:
    """The arrays from the file, or from `compute` if the file is missing, stale or damaged; writes it then.

    Args:
        path: the file.
        fingerprint: hash of everything that affects the numbers; a file with another one is stale.
        compute: returns the arrays by name.
    """
    with held(path):
        found = read(path, fingerprint)
        if found is None:
            began = time.perf_counter()
            arrays = compute()
            write(path, arrays, fingerprint, seconds=time.perf_counter() - began)
            found = read(path, fingerprint)  # so that the first caller gets the same as later ones
        if found is None:
            raise AssertionError(f"{path}: cannot read what was just written")
    return found


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Lock a cache file while it is read or computed; waits for another holder.

    The operating system unlocks it when the process dies. On a file system without locks, each process computes.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        log.info("%s: cannot be locked (%s)", path, error)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def write(path: Path, arrays: Mapping[str, NDArray[Any]], fingerprint: str, *, seconds: float = 0.0) -> None:
    """Write arrays that are in memory."""
    with replacing(path, parents=False) as temporary:
        _create(temporary, arrays, fingerprint, seconds)
        _seal(temporary)
    _make_room(path)


@contextmanager
def filling(path: Path, spec: Spec, fingerprint: str) -> Iterator[Stored]:
    """A new file whose arrays are filled through maps, so that they need not fit in memory."""
    with replacing(path, parents=False) as temporary:
        # write the zeros: a full disk then fails here with an error, and not later inside a map
        _create(temporary, {name: np.zeros(shape, kind) for name, (kind, shape) in spec.items()}, fingerprint, 0.0)
        yield _stored(temporary)
        _seal(temporary)
    _make_room(path)


def _make_room(path: Path) -> None:
    """Keep the user's cache within its size limit after a file was added; a study's own cache has no limit."""
    if path.parent == cache_size.folder():
        cache_size.trim(path.parent, cache_size.limit(), spared=path)


def read(path: Path, fingerprint: str, spec: Spec | None = None) -> Stored | None:
    """The stored arrays, fully checked; None if there are none or they are not the requested ones.

    Args:
        path: the file.
        fingerprint: the required fingerprint.
        spec: the required arrays; None accepts any.
    """
    try:
        stored = _stored(path)
        with path.open("rb") as file:
            meta = _header(file)["__metadata__"]
            sound = meta["fingerprint"] == fingerprint and _checksum(file) == meta["sha256"]
    except (FileNotFoundError, BlockingIOError):  # it does not exist, or is being removed to free space
        return None
    except Exception as error:  # a cache file may be damaged in any way; recompute it
        log.warning("%s: damaged cache file (%s); recomputing it", path.name, type(error).__name__)
        return None
    if not sound or (spec is not None and _plain(spec) != _plain(stored.spec)):
        log.warning("%s: stale or damaged cache file; recomputing it", path.name)
        return None
    return stored


def _create(path: Path, arrays: Mapping[str, NDArray[Any]], fingerprint: str, seconds: float) -> None:
    from safetensors.numpy import save_file

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(whole, path, metadata={"fingerprint": fingerprint, "seconds": f"{seconds:.3f}", "sha256": UNKNOWN})


def _stored(path: Path) -> Stored:
    """The contents of a file, as the safetensors library reads them.

    Raises:
        Exception: not a complete safetensors file.
    """
    from safetensors import safe_open

    hold = Hold(check_plain(path))
    with safe_open(path, framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        spec = {name: (KINDS[part.get_dtype()], tuple(part.get_shape())) for name, part in slices.items()}
    with path.open("rb") as file:
        header = _header(file)
        data = file.tell()
    offsets = {name: data + header[name]["data_offsets"][0] for name in spec}
    return Stored(path, spec, offsets, float(header["__metadata__"].get("seconds", 0.0)), hold)


def _header(file: Any) -> dict[str, Any]:
    """The header of a safetensors file: its length in 8 bytes, then JSON. The data follow."""
    file.seek(0)
    header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header


def _seal(path: Path) -> None:
    """Write the checksum of the data into the header."""
    with path.open("r+b") as file:
        _header(file)
        head = file.tell()
        checksum = _checksum(file)
        file.seek(0)
        text = file.read(head)
        file.seek(text.index(UNKNOWN.encode()))
        file.write(checksum.encode())


def _checksum(file: Any) -> str:
    """A sha256 of the rest of a file, read in pieces so that checking maps no memory."""
    digest = hashlib.sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    return digest.hexdigest()


def _plain(spec: Spec) -> dict[str, tuple[Any, tuple[int, ...]]]:
    return {name: (np.dtype(kind), tuple(shape)) for name, (kind, shape) in spec.items()}

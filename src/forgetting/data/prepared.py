"""A corpus as windows: read and tokenised once, stored on disk under a content key, and memory-mapped from there.

Processes that map the same file share its memory. The file belongs to an array cache (`array_cache.py`): it is fully
checked before use and written whole or not at all, and numbers do not depend on whether it existed.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..config.schema import DatasetConfig, TextConfig
from . import array_cache, passages
from .documents import Corpus, load_corpus, split_heldout
from .identity import corpus_key
from .tokenizing import tokenize
from .windows import Windows

log = logging.getLogger(__name__)
BEGINNINGS = 3
BEGINNING = 20_000
"""How many documents, and characters of each, are kept as text beginnings."""


@dataclass(frozen=True)
class Prepared:
    """One corpus, or one part of a data set.

    Attributes:
        windows: what is measured or trained on.
        passages: [P, 32] hashes of its documents and long lines (`passages.hashes`).
        beginnings: how its first plain-text documents begin.
    """

    windows: Windows
    passages: NDArray[np.uint8]
    beginnings: tuple[str, ...]


class Corpora:
    """Corpora for one tokenizer and context; this object reads each of them once."""

    def __init__(self, tokenizer: Any, context: int, cache_dir: Path | None) -> None:
        """Set up; reads nothing yet.

        Args:
            tokenizer: the model's tokenizer.
            context: tokens per window.
            cache_dir: where windows are stored; None stores none.
        """
        self.tokenizer, self.context, self.cache_dir = tokenizer, context, cache_dir
        self._read: dict[TextConfig, list[Prepared]] = {}

    def text(self, config: TextConfig) -> Prepared:
        """A whole text.

        Raises:
            UsageError, ForgettingError: see `load_corpus` and `tokenize`.
        """
        (whole,) = self._parts(config)
        return whole

    def dataset(self, config: DatasetConfig) -> tuple[Prepared, Prepared]:
        """The training part and the held-out part of a data set; raises like `text`."""
        train, heldout = self._parts(config)
        return train, heldout

    def _parts(self, config: TextConfig) -> list[Prepared]:
        if config not in self._read:
            self._read[config] = self._prepared(config)
        return self._read[config]

    @cached_property
    def _folder(self) -> Path | None:
        return array_cache.usable(self.cache_dir)  # called once, so that there is one notice

    def _prepared(self, config: TextConfig) -> list[Prepared]:
        how = (self.tokenizer, self.context)
        key = None if self.cache_dir is None else corpus_key(config, *how)
        if key is None or self._folder is None:
            return _read(config, *how)
        path = self._folder / f"windows-{key[:32]}.safetensors"
        stored = array_cache.read(path, key)
        if stored is not None:
            return _from_arrays(stored)
        before = _inode(path)
        with array_cache.held(path):
            stored = array_cache.read(path, key) if _inode(path) != before else None
            if stored is not None:  # the previous holder has made it
                return _from_arrays(stored)
            found = _read(config, *how)
            if corpus_key(config, *how) != key:
                log.warning("%s: changed while it was read; not caching it", config.source)
                return found
            return _keep(found, path, key)


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _read(config: TextConfig, tokenizer: Any, context: int) -> list[Prepared]:
    corpus = load_corpus(config)
    parts = split_heldout(corpus, config.heldout) if isinstance(config, DatasetConfig) else (corpus,)
    return [_of(part, tokenizer, context) for part in parts]


def _of(corpus: Corpus, tokenizer: Any, context: int) -> Prepared:
    windows = tokenize(corpus, tokenizer, context)
    beginnings = tuple(document.text[:BEGINNING] for document in corpus[:BEGINNINGS] if document.text)
    return Prepared(windows, passages.hashes(corpus), beginnings)


def _keep(found: list[Prepared], path: Path, key: str) -> list[Prepared]:
    """The windows from the disk, where other processes find them; from memory if they cannot be written."""
    for left in path.parent.glob(f".{path.name}.*"):  # left by a killed process: this process holds the lock
        with contextlib.suppress(OSError):
            left.unlink()
    try:
        array_cache.write(path, _arrays(found), key)
        stored = array_cache.read(path, key)
    except Exception as error:  # several libraries report a full disk in their own words; the cache only saves time
        log.warning(
            "%s: cannot write a cache there (%s); continuing without one",
            path,
            str(error).splitlines()[0] or type(error),
        )
        return found
    return found if stored is None else _from_arrays(stored)


FLAT = ("input_ids", "predicted", "offsets", "documents")
"""Arrays of windows that are stored unchanged."""


def _arrays(found: list[Prepared]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for number, part in enumerate(found):
        windows = part.windows
        arrays |= {f"{number}.{name}": getattr(windows, name) for name in FLAT}
        arrays[f"{number}.passages"] = part.passages
        arrays[f"{number}.first_copy"] = np.asarray(windows.first_copy, np.int32)
        arrays[f"{number}.document_ids"] = _bytes(list(windows.document_ids))
        arrays[f"{number}.rest"] = _bytes(
            {
                "documents": len(windows.document_ids),
                "notices": windows.notices,
                "fingerprint": windows.fingerprint(),
                "beginnings": part.beginnings,
            }
        )
    return arrays


def _from_arrays(stored: array_cache.Stored) -> list[Prepared]:
    parts = {name.partition(".")[0] for name in stored.spec}
    return [_part(stored, number) for number in sorted(parts)]


def _part(stored: array_cache.Stored, number: str) -> Prepared:
    def array(name: str) -> NDArray[Any]:
        return np.asarray(stored.array(f"{number}.{name}"))

    rest = _value(array("rest"))
    windows = Windows(
        **{name: array(name) for name in FLAT},
        document_ids=StoredNames(stored, f"{number}.document_ids", rest["documents"]),
        notices=tuple(rest["notices"]),
        first_copy=tuple(array("first_copy").tolist()),
    ).known_as(rest["fingerprint"])
    return Prepared(windows, array("passages"), tuple(rest["beginnings"]))


def _bytes(value: Any) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), np.uint8)


def _value(array: NDArray[np.uint8]) -> Any:
    return json.loads(array.tobytes())


@dataclass(frozen=True)
class StoredNames(Sequence[str]):
    """Names of documents in a file, read when first needed; most runs need none."""

    stored: array_cache.Stored
    array: str
    size: int

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(_value(np.asarray(self.stored.array(self.array))))

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self._names[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

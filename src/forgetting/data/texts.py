"""Plain texts in an unnamed temporary file, so that only the current one is in memory.

The file disappears when the object is deleted or the process dies.
"""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from .formats import Document


class Texts(Sequence[Document]):
    """Plain-text documents, in the order in which they were added."""

    def __init__(self) -> None:
        """Start without documents."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        self._begins, self._lengths = array("q"), array("q")
        self.ids: list[str] = []
        self.spaceless: list[bytes] = []
        """`spaceless_hash` of each document, as bytes."""
        self.visible = array("q")
        """Number of characters of each document that are not white space."""
        self._end = 0

    def add(self, name: str, text: str) -> None:
        """Add a document.

        Raises:
            OSError: the disk is full.
        """
        content = text.encode()
        self._file.write(content)
        self._begins.append(self._end)
        self._lengths.append(len(content))
        self._end += len(content)
        self.ids.append(name)
        words = " ".join(text.split())
        self.spaceless.append(hashlib.sha256(words.encode()).digest())
        self.visible.append(len(words) - words.count(" "))

    def finish(self) -> Texts:
        """Finish adding, so that the texts can be read; returns this object. Raises like `add`."""
        self._file.flush()
        return self

    def selected(self, places: Iterable[int]) -> Texts:
        """The documents at these indices; they share the file."""
        part = Texts.__new__(Texts)
        part._file, part._end = self._file, self._end
        places = np.fromiter(places, np.int64)
        part._begins, part._lengths, part.visible = (
            array("q", np.frombuffer(values, np.int64)[places].tobytes())
            for values in (self._begins, self._lengths, self.visible)
        )
        part.ids = [self.ids[i] for i in places]
        part.spaceless = [self.spaceless[i] for i in places]
        return part

    def text(self, place: int) -> str:
        """The text of one document."""
        self._file.seek(self._begins[place])
        return self._file.read(self._lengths[place]).decode()

    def count_beginning(self, mark: str) -> int:
        """Number of documents whose text begins with these characters."""
        content, count = mark.encode(), 0
        for begin, length in zip(self._begins, self._lengths, strict=True):
            if length >= len(content):
                self._file.seek(begin)
                count += self._file.read(len(content)) == content
        return count

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Document, ...]: ...
    def __getitem__(self, index: int | slice) -> Document | tuple[Document, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        return Document(id=self.ids[index], text=self.text(index))


def first_copies(keys: Sequence[bytes]) -> tuple[int, ...]:
    """For each document, the index of the first with the same content; empty if all differ."""
    first: dict[bytes, int] = {}
    places = tuple(first.setdefault(key, place) for place, key in enumerate(keys))
    return places if len(first) < len(places) else ()

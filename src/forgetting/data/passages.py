"""What two corpora have in common: whole documents and long lines, compared by hash.

Text that is measured must have nothing in common with text that is trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from .formats import Document

LONG = 80
"""Characters from which a line is too long to occur in two texts by chance."""


def passages(documents: Iterable[Document]) -> Iterator[tuple[bytes, str]]:
    """Hash and text of each whole document and of each line of at least LONG characters, except system prompts.

    Conversations with nothing else in common may share a system prompt.
    """
    for document in documents:
        turns = (turn for turn in document.messages if turn["role"] != "system")
        parts = [document.text, *(str(turn.get("content") or "") for turn in turns)]
        yield bytes.fromhex(document.spaceless_hash()), next(filter(None, parts), "")
        lines = (line.strip() for part in parts for line in part.splitlines())
        yield from ((hashlib.sha256(line.encode()).digest(), line) for line in lines if len(line) >= LONG)


def hashes(documents: Iterable[Document]) -> NDArray[np.uint8]:
    """[P, 32] the hashes of `passages`."""
    gathered = bytearray()
    for digest, _ in passages(documents):
        gathered += digest
    return np.frombuffer(gathered, np.uint8).reshape(-1, 32)


def count_shared(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    """The number of distinct hashes that are in both arrays, each [P, 32]."""
    few, many = sorted((np.ascontiguousarray(a), np.ascontiguousarray(b)), key=len)
    heads = few.view(np.uint64)[:, 0], many.view(np.uint64)[:, 0]
    alike = many[np.isin(heads[1], heads[0])]  # compare a quarter of each hash first, then all of it
    return len({row.tobytes() for row in alike} & {row.tobytes() for row in few}) if len(alike) else 0


def shared_passages(a: Iterable[Document], b: Iterable[Document]) -> list[str]:
    """What is in both corpora, each once, in the order of `b`: whole documents and long lines."""
    mine = {digest for digest, _ in passages(a)}
    return list({digest: text for digest, text in passages(b) if digest in mine}.values())

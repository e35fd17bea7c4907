"""What two corpora share: whole documents and long lines, by their hashes.

Text that is measured must share nothing with text that is trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from .formats import Document

LONG = 80
"""Characters from which on a line is long enough not to stand in two texts by chance."""


def passages(documents: Iterable[Document]) -> Iterator[tuple[bytes, str]]:
    """Hash and text of each whole document and each line of at least LONG characters, but for system prompts.

    System prompts are shared by conversations that have nothing else in common.
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
    """How many different hashes stand in both of these, each [P, 32]."""
    few, many = sorted((np.ascontiguousarray(a), np.ascontiguousarray(b)), key=len)
    heads = few.view(np.uint64)[:, 0], many.view(np.uint64)[:, 0]
    alike = many[np.isin(heads[1], heads[0])]  # by a quarter of each hash, then whole
    return len({row.tobytes() for row in alike} & {row.tobytes() for row in few}) if len(alike) else 0


def shared_passages(a: Iterable[Document], b: Iterable[Document]) -> list[str]:
    """What stands in both corpora, each once, in the order of `b`: whole documents and long lines."""
    mine = {digest for digest, _ in passages(a)}
    return list({digest: text for digest, text in passages(b) if digest in mine}.values())

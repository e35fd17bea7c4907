"""Documents to token windows: plain text as it is, conversations by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .chats import Chats
from .documents import Corpus, Document
from .windows import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, context: int) -> Windows:
    """Documents as windows of at most `context` tokens.

    Plain text is cut into consecutive windows, the last one shorter; every token but a window's first is predicted. A
    conversation is one window by the tokenizer's chat template, cut at `context`; the tokens of its assistant turns
    are predicted, with the end-of-turn mark. Where the template writes earlier turns otherwise than the last one, such
    an answer has a window of its own that ends with it.

    Raises:
        UsageError: the text is shorter than one window, a conversation that the tokenizer has no chat template for or
            whose template refuses it, or no target is left.
    """
    ids: list[NDArray[np.int32]] = []
    masks: list[NDArray[np.bool_]] = []
    owners: list[int] = []
    chats = Chats(tokenizer)
    cut = 0
    for owner, document in enumerate(documents):
        parts = chats.encode(document) if document.messages else _plain(document, tokenizer, context)
        cut += any(len(tokens) > context for tokens, _ in parts)
        for tokens, targets in parts:
            window, mask = tokens[:context], targets[:context].copy()
            mask[:1] = False
            if mask.any():
                ids.append(window)
                masks.append(mask)
                owners.append(owner)
    _check_enough(documents, ids, context)
    dropped = len(documents) - len(set(owners))
    notices = [f"{cut} of {len(documents)} conversations were cut at {context} tokens"] if cut else []
    notices += [f"{dropped} of {len(documents)} documents have no target within {context} tokens"] if dropped else []
    first_copy = _first_copies(documents)
    copies = len(documents) - len(set(first_copy)) if first_copy else 0
    notices += (
        [f"{copies} of {len(documents)} documents are copies of others and no independent ones"] if copies else []
    )
    return Windows(
        input_ids=np.concatenate(ids).astype(np.int32),
        predicted=np.concatenate(masks),
        offsets=np.concatenate([[0], np.cumsum([len(window) for window in ids])]).astype(np.int64),
        documents=np.asarray(owners, dtype=np.int32),
        document_ids=tuple(document.id for document in documents),
        notices=(*(documents.notices if isinstance(documents, Corpus) else ()), *notices, *chats.notices()),
        first_copy=first_copy,
    )


def _plain(
    document: Document, tokenizer: PreTrainedTokenizerBase, context: int
) -> list[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
    """Consecutive windows of a plain text, every token a target."""
    ids = np.asarray(tokenizer(document.text, verbose=False)["input_ids"], dtype=np.int32)
    pieces = [ids[start : start + context] for start in range(0, len(ids), context)]
    return [(piece, np.ones(len(piece), dtype=bool)) for piece in pieces]


def _first_copies(documents: Sequence[Document]) -> tuple[int, ...]:
    """The place of the first document with the same content, for each; nothing where all are different."""
    first: dict[str, int] = {}
    places = tuple(first.setdefault(document.spaceless_hash(), i) for i, document in enumerate(documents))
    return places if len(first) < len(places) else ()


def _check_enough(documents: Sequence[Document], windows: Sequence[NDArray[np.int32]], context: int) -> None:
    total = sum(len(window) for window in windows)
    plain = all(not document.messages for document in documents)
    if plain and total < context:
        raise UsageError(
            f"the text has {total} tokens in {len(documents)} documents, fewer than one window of {context}; "
            "give more text or a smaller context"
        )
    if not windows:
        raise UsageError(f"no answer begins within {context} tokens in any conversation; give a larger context")

"""Turns documents into token windows: plain text directly, conversations with the tokenizer's chat template."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..display.numbers import several, share_of
from ..errors import UsageError
from .chats import Chats
from .documents import Corpus, Document
from .readers import check_words
from .start_token import StartToken
from .texts import first_copies
from .windows import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encoded = tuple[NDArray[np.int32], NDArray[np.bool_]]
"""Tokens of a window, and which of them are targets."""
BATCH_CHARACTERS = 2**18
BATCH_DOCUMENTS = 1024
"""Characters of plain text, and documents, given to a tokenizer at once: enough for all cores, little memory."""


def tokenize(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, context: int) -> Windows:
    """Documents as windows of at most `context` tokens.

    Plain text is cut into consecutive windows, the last one shorter; every token except a window's first is predicted.
    A text that begins with the tokenizer's start token does not get another one.
    A conversation is one window, rendered with the chat template and cut at `context`; the tokens of its assistant
    turns are predicted, including the end-of-turn token. If the template renders an earlier answer differently from
    the last one, that answer gets a window of its own, which ends with it.

    Raises:
        UsageError: a conversation without a chat template, or one that the
            template refuses; a template without the assistant's answers; or no target is left.
    """
    corpus = documents if isinstance(documents, Corpus) else Corpus(documents)
    chats = Chats(tokenizer)
    gathered = Gathered(context)
    for batch in _batches(documents):
        gathered.add(_encoded(batch, tokenizer, chats, context))
    chats.check_answers(documents)
    _check_enough(documents, gathered, context)
    first_copy = first_copies(corpus.spaceless)
    cut = gathered.cut
    notices = [
        *([f"{share_of(cut, len(documents), 'conversation', 'was')} cut at {context} tokens"] if cut else []),
        *dropped_notice(len(documents), gathered.owning, context),
        *copies_notice(first_copy),
        *chats.start.notice(len(documents)),
        *chats.notices(),
    ]
    return gathered.windows(document_ids=corpus.ids, notices=(*corpus.notices, *notices), first_copy=first_copy)


def dropped_notice(documents: int, with_target: int, context: int) -> list[str]:
    """What a reader should know about documents without a window."""
    dropped = documents - with_target
    return [f"{share_of(dropped, documents, 'document', 'has')} no target within {context} tokens"] if dropped else []


def copies_notice(first_copy: Sequence[int]) -> list[str]:
    """What a reader should know about repeated documents."""
    copies, documents = len(first_copy) - len(set(first_copy)), len(first_copy)
    kind = "a copy of another, so it is" if copies == 1 else "copies of others, so they are"
    return [f"{share_of(copies, documents, 'document', 'is')} {kind} not independent"] if copies else []


class Gathered:
    """Collects windows in flat buffers; one array object per window would take more memory than its tokens."""

    def __init__(self, context: int) -> None:
        """Start empty; windows are cut at `context`."""
        self.context = context
        self.ids, self.masks = bytearray(), bytearray()
        self.lengths, self.owners = array("q"), array("i")
        self.seen = self.owning = self.cut = 0

    def add(self, documents: Iterable[list[Encoded]]) -> None:
        """Add the windows of the next documents; a window without a target is left out."""
        for parts in documents:
            self.cut += any(len(tokens) > self.context for tokens, _ in parts)
            before = len(self.owners)
            for tokens, targets in parts:
                mask = targets[: self.context].copy()
                mask[:1] = False
                if mask.any():
                    self.ids += tokens[: self.context].astype(np.int32, copy=False).tobytes()
                    self.masks += mask.tobytes()
                    self.lengths.append(len(mask))
                    self.owners.append(self.seen)
            self.owning += len(self.owners) > before
            self.seen += 1

    @property
    def tokens(self) -> int:
        """Tokens of all windows."""
        return len(self.masks)

    def windows(self, *, owners: NDArray[np.int64] | None = None, **more: Any) -> Windows:
        """All windows.

        Args:
            owners: [D] the index in the corpus of each added document; by default they are counted from 0.
            more: the other fields of Windows.
        """
        places = np.array(self.owners, np.int32)
        return Windows(
            input_ids=np.frombuffer(self.ids, np.int32),
            predicted=np.frombuffer(self.masks, np.bool_),
            offsets=np.concatenate([[0], np.cumsum(np.frombuffer(self.lengths, np.int64))]).astype(np.int64),
            documents=places if owners is None else owners[places].astype(np.int32),
            **more,
        )


def _batches(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """Documents in groups of about BATCH_CHARACTERS of plain text."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    yield batch


def _encoded(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, chats: Chats, context: int
) -> Iterator[list[Encoded]]:
    """The windows of each document; conversations are not yet cut at `context`."""
    texts = [document.text for document in documents if not document.messages]
    plain = encode_plain(texts, tokenizer, context, chats.start)
    for document in documents:
        yield chats.encode(document) if document.messages else next(plain)


def encode_plain(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, context: int, start: StartToken
) -> Iterator[list[Encoded]]:
    """The windows of each plain text: consecutive, every token a target. Texts with a start token are counted."""
    for text in texts:
        check_words(text, "the text")
    for text, found in zip(texts, _plain(texts, tokenizer), strict=True):
        start.count += start.begins(text)
        ids = start.once(text, found)
        pieces = [ids[low : low + context] for low in range(0, len(ids), context)]
        yield [(piece, np.ones(len(piece), dtype=bool)) for piece in pieces]


def _plain(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterable[NDArray[np.int32]]:
    """The tokens of each text; a fast tokenizer processes many texts at once, on all cores."""
    if len(texts) > 1 and getattr(tokenizer, "is_fast", False):
        found = tokenizer(list(texts), verbose=False, return_attention_mask=False, return_token_type_ids=False)
        return (np.asarray(ids, np.int32) for ids in found["input_ids"])
    return (np.asarray(tokenizer(text, verbose=False)["input_ids"], np.int32) for text in texts)


def _check_enough(documents: Sequence[Document], gathered: Gathered, context: int) -> None:
    if gathered.tokens:
        return
    if not any(document.messages for document in documents):
        raise UsageError(
            f"the text has {several(len(documents), 'document')} and none is two tokens long, so there is no token to "
            "predict; give longer texts"
        )
    raise UsageError(f"no answer begins within {context} tokens in any conversation; give a larger context")

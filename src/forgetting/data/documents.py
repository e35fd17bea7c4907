"""Corpora: reads local files, Hub data sets and the miniature as documents.

A document is the unit that the training part and the held-out part never share, and by which standard errors are
clustered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import overload

from ..config.schema import TextConfig
from ..display.numbers import several
from ..errors import UsageError
from . import cutting, formats
from .formats import Document as Document
from .large import read_texts
from .readers import encodable, line_feeds
from .sources import read_rows, row_limit
from .texts import Texts


@dataclass(frozen=True)
class Corpus(Sequence[Document]):
    """Documents, and what a reader of their numbers should know about how they were read."""

    documents: Sequence[Document]
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.documents)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Document, ...]: ...
    def __getitem__(self, index: int | slice) -> Document | tuple[Document, ...]:
        return self.documents[index] if isinstance(index, int) else tuple(self.documents[index])

    def selected(self, places: Iterable[int]) -> Corpus:
        """The documents at these indices, with all notices."""
        texts = self.documents
        if isinstance(texts, Texts):
            return Corpus(texts.selected(places), self.notices)
        return Corpus(tuple(texts[i] for i in places), self.notices)

    @property
    def ids(self) -> tuple[str, ...]:
        """The name of each document."""
        texts = self.documents
        return tuple(texts.ids if isinstance(texts, Texts) else (document.id for document in texts))

    @property
    def spaceless(self) -> list[bytes]:
        """`spaceless_hash` of each document, as bytes."""
        texts = self.documents
        if isinstance(texts, Texts):
            return texts.spaceless
        return [bytes.fromhex(document.spaceless_hash()) for document in texts]


def load_corpus(config: TextConfig) -> Corpus:
    """Read a corpus and cut it into documents.

    Args:
        config: source, columns, and what a document is.

    Returns:
        The documents in the order of the source, without empty ones; at most `config.max_documents`.

    Raises:
        UsageError: a file is missing, malformed or empty, or lacks a column; names file, row and columns.
        ForgettingError: the Hub could not be reached.
    """
    large = read_texts(config)
    if large is not None:
        return Corpus(*large)
    rows, notices = read_rows(config)
    if config.documents == "auto" and len(rows) == row_limit(config) and _are_lines(rows, config.text_column):
        rows, notices = read_rows(config.model_copy(update={"documents": "wikitext"}))
    return corpus_of(rows, config, notices)


def corpus_of(rows: Sequence[formats.Row], config: TextConfig, notices: Iterable[str] = ()) -> Corpus:
    """Rows as documents, as `load_corpus` reads them from a source.

    Args:
        rows: at least one; cells are text, or lists of messages.
        config: columns, and what a document is; error messages use the source's name.
        notices: notices about how the rows were read.

    Raises:
        UsageError: a column is missing, a row is malformed, or there is no text; names row and columns.
    """
    name = PurePath(config.source).name
    rows, replaced = _without_surrogates(rows)
    told = (
        [f"{replaced} of {several(len(rows), 'row')} had lone surrogates (half characters), replaced by U+FFFD"]
        if replaced
        else []
    )
    shape, guessed = formats.recognise(config, formats.columns_of(rows))
    if shape.kind == "text":
        documents, found = _text_documents(config, rows)
    else:
        documents, found = formats.conversations(config, rows, shape)
    if not documents:
        why = f": all {len(rows):,} rows are empty" if len(rows) > 1 else ""
        raise UsageError(f"{config.source}: contains no text{why}")
    documents = _unique_ids(documents)[: config.max_documents]
    return Corpus(tuple(documents), (*notices, *(f"{name}: {notice}" for notice in (*told, *guessed, *found))))


def _without_surrogates(rows: Sequence[formats.Row]) -> tuple[list[formats.Row], int]:
    """Rows that can be written as UTF-8, and how many had to be changed."""
    cleaned = [encodable(row) for row in rows]
    return cleaned, sum(clean is not row for clean, row in zip(cleaned, rows, strict=True))


def _text_documents(config: TextConfig, rows: Sequence[formats.Row]) -> tuple[list[Document], list[str]]:
    column = config.text_column
    texts = [
        formats.text(row.get(column), f"{config.source}: row {i}", column, or_null=True)
        for i, row in enumerate(rows, start=1)
    ]
    mode = config.documents if config.documents != "auto" else cutting.guessed_cut(texts)
    if mode == "rows":
        named = [(formats.row_id(row, i), text) for i, (row, text) in enumerate(zip(rows, texts, strict=True))]
        documents = [Document(id=name, text=text) for name, text in named if text.strip()]
        return documents, formats.empty_rows(len(rows), len(rows) - len(documents))
    # Hub copies of WikiText have one line per row, with its line break: an article is many rows.
    whole = line_feeds("".join(text if text.endswith("\n") else text + "\n" for text in texts))
    documents = [Document(id=name, text=text) for name, text in cutting.CUTS[mode]([whole]) if text.strip()]
    if config.documents != "auto" or config.source.startswith("miniature:"):
        return documents, []
    return documents, cutting.notices_of(mode, len(documents))


def _are_lines(rows: Sequence[formats.Row], column: str) -> bool:
    """Whether rows are the lines of articles, so that there are fewer documents than rows."""
    texts = [text for row in rows if isinstance(text := row.get(column), str)]
    return len(texts) > 1 and cutting.guessed_cut(texts) == "wikitext"


def _unique_ids(documents: Sequence[Document]) -> list[Document]:
    unique = cutting.UniqueNames()
    named = ((document, unique.name(document.id)) for document in documents)
    return [document if name == document.id else replace(document, id=name) for document, name in named]


def split_heldout(documents: Sequence[Document], share: float) -> tuple[Corpus, Corpus]:
    """Split into a training and a held-out part that share no document, not even a copy of one.

    The split depends only on the content of the documents, so every run of every seed holds out the same ones.

    Args:
        documents: the corpus.
        share: share of the distinct documents to hold out; at least two are, and never all.

    Returns:
        The training part, with the notices of the corpus, and the held-out part, each in the order of the corpus.

    Raises:
        UsageError: fewer than four distinct documents.
    """
    corpus = documents if isinstance(documents, Corpus) else Corpus(documents)
    first: dict[bytes, bytes] = {}  # copies may differ in white space; use the smallest of their hashes
    keys = corpus.spaceless
    for key, document in zip(keys, corpus, strict=True):
        digest = bytes.fromhex(document.content_hash())
        first[key] = min(first.get(key, digest), digest)
    distinct = sorted(first.values())
    if len(distinct) < 4:
        raise UsageError(
            f"the fine-tuning data has {len(distinct)} distinct documents; at least 4 are needed to hold some out. "
            "If one file contains many texts, say with `documents` how to cut it"
        )
    held = set(distinct[: min(max(2, math.ceil(share * len(distinct))), len(distinct) - 1)])
    is_held = [first[key] in held for key in keys]
    train = corpus.selected(i for i, out in enumerate(is_held) if not out)
    return train, Corpus(corpus.selected(i for i, out in enumerate(is_held) if out).documents)

"""Corpora: local files, Hub data sets and the miniature -> documents.

A document is the unit that is never shared between the training and the held-out part, and over which standard
errors are clustered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, overload

from ..config.schema import TextConfig
from ..errors import UsageError
from . import formats
from .formats import Document as Document
from .readers import line_feeds
from .sources import read_rows

WIKITEXT_TITLE = re.compile(r"^ = ([^=\n]+?) = ?\n?$", re.MULTILINE)
LONE = re.compile("[\ud800-\udfff]")
SECTION_CHARACTERS = 4000
CUTS = {
    "wikitext": "at ` = Title = ` lines (wikitext)",
    "paragraphs": "at blank lines (paragraphs)",
    "sections": f"into blocks of whole paragraphs of about {SECTION_CHARACTERS:,} characters (sections)",
}
"""How each way of cutting cuts, in words."""


@dataclass(frozen=True)
class Corpus(Sequence[Document]):
    """Documents, and what a reader of numbers on them should know of how they were read."""

    documents: tuple[Document, ...]
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.documents)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Document, ...]: ...
    def __getitem__(self, index: int | slice) -> Document | tuple[Document, ...]:
        return self.documents[index]


def load_corpus(config: TextConfig) -> Corpus:
    """Read a corpus and cut it into documents.

    Args:
        config: source, columns, and what a document is.

    Returns:
        The documents in their order in the source, empty ones left out; at most `config.max_documents`.

    Raises:
        UsageError: a file is missing, malformed or empty, or lacks a column; names file, row and columns.
    """
    rows, notices = read_rows(config)
    if config.documents == "auto" and len(rows) == config.max_documents and _are_lines(rows, config.text_column):
        rows, notices = read_rows(config.model_copy(update={"documents": "wikitext"}))
    return corpus_of(rows, config, notices)


def corpus_of(rows: Sequence[formats.Row], config: TextConfig, notices: Iterable[str] = ()) -> Corpus:
    """Rows as documents, as `load_corpus` reads them from a source.

    Args:
        rows: at least one; cells are text, or lists of messages.
        config: columns, and what a document is; the source names the rows in messages.
        notices: of how the rows were read.
    """
    name = PurePath(config.source).name
    rows, replaced = _without_surrogates(rows)
    told = [f"{replaced} of {len(rows)} rows had lone surrogates, halves of characters: now U+FFFD"] if replaced else []
    shape, guessed = formats.recognise(config, formats.columns_of(rows))
    if shape.kind == "text":
        documents, found = _text_documents(config, rows)
    else:
        documents, found = formats.conversations(config, rows, shape)
    if not documents:
        raise UsageError(f"{config.source}: no text in it: {len(rows)} rows, all of them empty")
    documents = _unique_ids(documents)[: config.max_documents]
    return Corpus(tuple(documents), (*notices, *(f"{name}: {notice}" for notice in (*told, *guessed, *found))))


def _without_surrogates(rows: Sequence[formats.Row]) -> tuple[list[formats.Row], int]:
    """Rows that can be written as UTF-8, and how many had to be changed for it.

    JSON can hold half of a character that UTF-16 writes as two, such as "\\ud83d"; no tokenizer reads it.
    """
    cleaned = [_encodable(row) for row in rows]
    return cleaned, sum(clean is not row for clean, row in zip(cleaned, rows, strict=True))


def _encodable(value: Any) -> Any:
    """The value itself, or a copy where some text in it has lone surrogates."""
    if isinstance(value, str):
        if value.isascii():
            return value
        clean = LONE.sub("\ufffd", value)
        return value if clean == value else clean
    if isinstance(value, dict):
        items = {_encodable(key): _encodable(item) for key, item in value.items()}
        same = all(a is b for a, b in zip(items.values(), value.values(), strict=False)) and list(items) == list(value)
        return value if same else items
    if isinstance(value, list):
        items_ = [_encodable(item) for item in value]
        return value if all(a is b for a, b in zip(items_, value, strict=True)) else items_
    return value


def _text_documents(config: TextConfig, rows: Sequence[formats.Row]) -> tuple[list[Document], list[str]]:
    column = config.text_column
    texts = [
        formats.text(row.get(column), f"{config.source}: row {i}", column, or_null=True)
        for i, row in enumerate(rows, start=1)
    ]
    mode = config.documents if config.documents != "auto" else _guessed_cut(texts)
    if mode == "rows":
        named = [(formats.row_id(row, i), text) for i, (row, text) in enumerate(zip(rows, texts, strict=True))]
        documents = [Document(id=name, text=text) for name, text in named if text.strip()]
        empty = len(rows) - len(documents)
        return documents, [f"{empty} of {len(rows)} rows are empty and left out"] if empty else []
    # Hub copies of WikiText hold one line a row, with its line break: an article is many rows.
    whole = line_feeds("".join(text if text.endswith("\n") else text + "\n" for text in texts))
    pairs = {"wikitext": _wikitext, "paragraphs": _paragraphs, "sections": _sections}[mode](whole)
    documents = [Document(id=name, text=text) for name, text in pairs if text.strip()]
    if config.documents != "auto" or config.source.startswith("miniature:"):
        return documents, []
    if len(documents) == 1:
        return documents, ["one document, so no standard error can be given; `documents` sets where one begins"]
    notice = f"{len(documents)} documents, cut {CUTS[mode]}"
    if mode == "sections":
        notice += "; neighbours are not independent, so standard errors are somewhat too small"
    return documents, [f"{notice}; `documents` sets where one begins"]


def _are_lines(rows: Sequence[formats.Row], column: str) -> bool:
    """Whether rows are the lines of articles, so that so many rows are fewer documents."""
    texts = [text for row in rows if isinstance(text := row.get(column), str)]
    return len(texts) > 1 and _guessed_cut(texts) == "wikitext"


def _guessed_cut(texts: Sequence[str]) -> str:
    """How to cut a text that nothing is said of.

    One text with WikiText's titles is WikiText. Many are so where each is one line, as in Hub copies, and some are
    blank or all end in their line break: rows that are documents by themselves may hold such a line, too.
    """
    if len(texts) == 1:
        titles = len(list(WIKITEXT_TITLE.finditer(line_feeds(texts[0]))))
        begins = WIKITEXT_TITLE.match(line_feeds(texts[0]).lstrip("\n"))
        return "wikitext" if begins or titles > 1 else "sections"
    lines = [text.rstrip("\r\n") for text in texts]
    single = not any("\n" in line for line in lines)
    broken = any(not line.strip() for line in lines) or all(text.endswith("\n") for text in texts)
    return "wikitext" if single and broken and any(map(WIKITEXT_TITLE.match, lines)) else "rows"


def _wikitext(text: str) -> Iterator[tuple[str, str]]:
    """Articles, each from its ` = Title = ` line to the next; ` = = Section = = ` lines do not start one.

    What stands before the first title is a document, too.
    """
    starts = list(WIKITEXT_TITLE.finditer(text))
    if not starts:
        raise UsageError("documents: wikitext, but the text has no ` = Title = ` line; use paragraphs or sections")
    yield "before-the-first-title", text[: starts[0].start()]
    ends = [match.start() for match in starts[1:]] + [len(text)]
    for match, end in zip(starts, ends, strict=True):
        yield match.group(1).strip(), text[match.start() : end]


def _paragraphs(text: str) -> Iterator[tuple[str, str]]:
    for i, block in enumerate(re.split(r"\n\s*\n", text)):
        yield f"paragraph-{i}", block.strip("\n")


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Blocks of whole paragraphs of at least SECTION_CHARACTERS: documents for one long text without marks.

    Neighbouring sections are not quite independent, so standard errors over them are a little too small.
    """
    gathered: list[str] = []
    size = count = 0
    for _, block in _paragraphs(text):
        gathered.append(block)
        size += len(block) + 2
        if size >= SECTION_CHARACTERS:
            yield f"section-{count}", "\n\n".join(gathered)
            gathered, size, count = [], 0, count + 1
    if gathered:
        yield f"section-{count}", "\n\n".join(gathered)


def _unique_ids(documents: Sequence[Document]) -> list[Document]:
    seen: dict[str, int] = {}
    unique = []
    for document in documents:
        seen[document.id] = count = seen.get(document.id, 0) + 1
        name = document.id if count == 1 else f"{document.id}#{count}"
        unique.append(document if name == document.id else replace(document, id=name))
    return unique


def split_heldout(documents: Sequence[Document], share: float) -> tuple[Corpus, Corpus]:
    """Split into a training and a held-out part that share no document, not even a copy of one.

    The part of a document depends on its content hash alone, so that every run of every seed holds out the same ones.

    Args:
        documents: the corpus.
        share: of the distinct documents, how large a part is held out; at least two are.

    Returns:
        The training part, with the notices of the corpus, and the held-out part, each in the order of the corpus.

    Raises:
        UsageError: fewer than four distinct documents.
    """
    first: dict[str, str] = {}  # copies differ in white space at most: the least of their hashes stands for them
    keys = [document.spaceless_hash() for document in documents]
    for key, document in zip(keys, documents, strict=True):
        digest = document.content_hash()
        first[key] = min(first.get(key, digest), digest)
    distinct = sorted(first.values())
    if len(distinct) < 4:
        raise UsageError(
            f"the fine-tuning data has {len(distinct)} distinct documents; at least 4 are needed to hold some out. "
            "If one file holds many texts, say with `documents` where they start"
        )
    held = set(distinct[: max(2, math.ceil(share * len(distinct)))])
    kept = documents.notices if isinstance(documents, Corpus) else ()
    train = tuple(d for key, d in zip(keys, documents, strict=True) if first[key] not in held)
    return Corpus(train, kept), Corpus(tuple(d for key, d in zip(keys, documents, strict=True) if first[key] in held))

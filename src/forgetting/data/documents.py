"""Corpora: local text, JSONL and Parquet, Hub data sets and the miniature -> documents.

A document is the unit that is never shared between the training and the held-out part, and over which standard
errors are clustered.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config.schema import TextConfig
from ..errors import UsageError
from .sources import read_rows

WIKITEXT_TITLE = re.compile(r"^ = ([^=\n]+?) = ?\n?$", re.MULTILINE)
SECTION_CHARACTERS = 4000
PASSAGE = 80
"""Characters from which on a line is long enough not to stand in two texts by chance."""
Message = Mapping[str, str]


@dataclass(frozen=True)
class Document:
    """One document: plain text, or a conversation whose assistant turns are the targets.

    Attributes:
        id: unique in its corpus; a title, the row's own id, or its place.
        text: plain text, every token a target; empty for a conversation.
        messages: turns with `role` and `content`; empty for plain text.
    """

    id: str
    text: str = ""
    messages: tuple[Message, ...] = ()

    def content_hash(self) -> str:
        """A sha256 over text and turns, not the id: equal content has equal hashes."""
        turns = [f"{m['role']}\x1f{m['content']}" for m in self.messages]
        return hashlib.sha256("\x1e".join([self.text, *turns]).encode()).hexdigest()


def load_corpus(config: TextConfig) -> list[Document]:
    """Read a corpus and cut it into documents.

    Args:
        config: source, columns, and what a document is.

    Returns:
        The documents in their order in the source, empty ones left out; at most `config.max_documents`.

    Raises:
        UsageError: a file is missing, malformed or empty, or lacks a column; names file, row and columns.
    """
    return corpus_of(read_rows(config), config)


def corpus_of(rows: Sequence[Mapping[str, Any]], config: TextConfig) -> list[Document]:
    """Rows as documents, as `load_corpus` reads them from a source.

    Args:
        rows: at least one.
        config: columns, and what a document is; its source names the rows in messages.
    """
    kind = config.format if config.format != "auto" else _detect(config, rows[0])
    column = {"text": config.text_column, "chat": config.messages_column, "completion": config.completion_column}[kind]
    if column not in rows[0]:
        raise UsageError(
            f"{config.source}: no column '{column}' for format {kind}; columns: {', '.join(map(str, rows[0]))}. "
            f"Name the column with {'messages' if kind == 'chat' else kind}_column"
        )
    documents = _text_documents(config, rows) if kind == "text" else _conversations(config, rows, kind)
    if not documents:
        raise UsageError(f"{config.source}: no text in it: {len(rows)} rows, all of them empty")
    return _unique_ids(documents)[: config.max_documents]


def _detect(config: TextConfig, row: Mapping[str, Any]) -> str:
    if config.messages_column in row:
        return "chat"
    if config.prompt_column in row and config.completion_column in row:
        return "completion"
    if config.text_column in row:
        return "text"
    raise UsageError(
        f"{config.source}: no column '{config.text_column}', '{config.messages_column}', or "
        f"'{config.prompt_column}' with '{config.completion_column}'; columns: {', '.join(map(str, row))}. "
        "Name them with text_column, messages_column, prompt_column, completion_column"
    )


def _text_documents(config: TextConfig, rows: Sequence[Mapping[str, Any]]) -> list[Document]:
    texts = [_string(config, row, i, config.text_column) for i, row in enumerate(rows)]
    mode = config.documents
    if mode == "auto":
        titled = any(WIKITEXT_TITLE.search(text) for text in texts)
        mode = "wikitext" if titled else ("rows" if len(texts) > 1 else "sections")
    if mode == "rows":
        pairs: Iterable[tuple[str, str]] = (
            (str(row.get("id", f"row-{i}")), text) for i, (row, text) in enumerate(zip(rows, texts, strict=True))
        )
    else:
        # Hub copies of WikiText hold one line a row, with its line break: an article is many rows.
        whole = "".join(text if text.endswith("\n") else text + "\n" for text in texts)
        pairs = {"wikitext": _wikitext, "paragraphs": _paragraphs, "sections": _sections}[mode](whole)
    return [Document(id=name, text=text) for name, text in pairs if text.strip()]


def _wikitext(text: str) -> Iterator[tuple[str, str]]:
    """Articles, each from its ` = Title = ` line to the next; ` = = Section = = ` lines do not start one."""
    starts = list(WIKITEXT_TITLE.finditer(text))
    if not starts:
        raise UsageError("documents: wikitext, but the text has no ` = Title = ` line; use paragraphs or sections")
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


def _string(config: TextConfig, row: Mapping[str, Any], index: int, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise UsageError(
            f"{config.source}: row {index + 1}: column '{column}' must be text, "
            f"got {type(value).__name__} {value!r:.40}"
        )
    return value


def _conversations(config: TextConfig, rows: Sequence[Mapping[str, Any]], kind: str) -> list[Document]:
    documents = []
    for i, row in enumerate(rows):
        if kind == "completion":
            turns: list[Message] = [
                {"role": "user", "content": _string(config, row, i, config.prompt_column)},
                {"role": "assistant", "content": _string(config, row, i, config.completion_column)},
            ]
        else:
            turns = _turns(config, row, i)
        if any(turn["role"] == "assistant" and turn["content"].strip() for turn in turns):
            documents.append(Document(id=str(row.get("id", f"row-{i}")), messages=tuple(turns)))
    return documents


def _turns(config: TextConfig, row: Mapping[str, Any], index: int) -> list[Message]:
    where = f"{config.source}: row {index + 1}: column '{config.messages_column}'"
    value = row.get(config.messages_column)
    if not isinstance(value, list | np.ndarray) or not len(value):
        raise UsageError(f"{where} must be a list of {{role, content}}, got {type(value).__name__} {value!r:.40}")
    turns: list[Message] = []
    for turn in value:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise UsageError(f"{where}: each message needs the texts `role` and `content`, got {turn!r:.60}")
        turns.append({"role": role, "content": content})
    if not any(turn["role"] == "assistant" for turn in turns):
        roles = ", ".join(turn["role"] for turn in turns)
        raise UsageError(f"{where} has no assistant message to learn from; its roles: {roles}")
    return turns


def _unique_ids(documents: Sequence[Document]) -> list[Document]:
    seen: dict[str, int] = {}
    unique = []
    for document in documents:
        seen[document.id] = count = seen.get(document.id, 0) + 1
        name = document.id if count == 1 else f"{document.id}#{count}"
        unique.append(Document(id=name, text=document.text, messages=document.messages))
    return unique


def split_heldout(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Split into a training and a held-out part that share no document, not even a copy of one.

    The part of a document depends on its content hash alone, so that every run of every seed holds out the same ones.

    Args:
        documents: the corpus.
        share: of the distinct documents, how large a part is held out; at least two are.

    Returns:
        The training part and the held-out part, each in the order of the corpus.

    Raises:
        UsageError: fewer than four distinct documents.
    """
    distinct = sorted({document.content_hash() for document in documents})
    if len(distinct) < 4:
        raise UsageError(
            f"the fine-tuning data has {len(distinct)} distinct documents; at least 4 are needed to hold some out. "
            "If one file holds many texts, say with `documents` where they start"
        )
    held = set(distinct[: max(2, math.ceil(share * len(distinct)))])
    train = [d for d in documents if d.content_hash() not in held]
    return train, [d for d in documents if d.content_hash() in held]


def passages(documents: Iterable[Document]) -> dict[str, str]:
    """Hash -> text of each whole document and each line of at least PASSAGE characters."""
    found = {}
    for document in documents:
        parts = [document.text, *(turn["content"] for turn in document.messages)]
        found[document.content_hash()] = next(filter(None, parts), "")
        lines = (line.strip() for part in parts for line in part.splitlines())
        found |= {hashlib.sha256(line.encode()).hexdigest(): line for line in lines if len(line) >= PASSAGE}
    return found


def shared_passages(a: Iterable[Document], b: Iterable[Document]) -> list[str]:
    """What stands in both corpora, each once: whole documents, and lines of at least PASSAGE characters.

    Text that is measured must share nothing with text that is trained on.
    """
    mine = passages(a)
    return [text for digest, text in passages(b).items() if digest in mine]

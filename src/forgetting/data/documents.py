"""Corpora: local text, JSONL and Parquet, Hub data sets and the miniature -> documents -> token windows.

A document is the unit that is never shared between the training and the held-out part, and over which standard
errors are clustered.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.schema import TextConfig
from ..errors import UsageError
from .sources import read_rows
from .windows import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WIKITEXT_TITLE = re.compile(r"^ = ([^=\n]+?) = ?\n?$", re.MULTILINE)
SECTION_CHARACTERS = 4000
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
    rows = read_rows(config)
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


def tokenize(documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, context: int) -> Windows:
    """Documents as windows of at most `context` tokens.

    Plain text is cut into consecutive windows, the last one shorter; every token but a window's first is predicted. A
    conversation is one window by the tokenizer's chat template, cut at `context`; the tokens of its assistant turns
    are predicted, with the end-of-turn mark.

    Raises:
        UsageError: the text is shorter than one window, the tokenizer has no chat template for a conversation, or
            no target is left.
    """
    ids: list[np.ndarray[Any, Any]] = []
    masks: list[np.ndarray[Any, Any]] = []
    owners: list[int] = []
    cut = 0
    for owner, document in enumerate(documents):
        tokens, targets = _encode(document, tokenizer)
        cut += bool(document.messages) and len(tokens) > context
        stop = min(len(tokens), context) if document.messages else len(tokens)
        for start in range(0, stop, context):
            window, mask = tokens[start : start + context], targets[start : start + context].copy()
            mask[:1] = False
            if mask.any():
                ids.append(window)
                masks.append(mask)
                owners.append(owner)
    _check_enough(documents, ids, context)
    offsets = np.concatenate([[0], np.cumsum([len(window) for window in ids])]).astype(np.int64)
    dropped = len(documents) - len(set(owners))
    notices = [f"{cut} of {len(documents)} conversations were cut at {context} tokens"] if cut else []
    notices += [f"{dropped} of {len(documents)} documents have no target within {context} tokens"] if dropped else []
    return Windows(
        input_ids=np.concatenate(ids).astype(np.int32),
        predicted=np.concatenate(masks),
        offsets=offsets,
        documents=np.asarray(owners, dtype=np.int32),
        document_ids=tuple(document.id for document in documents),
        notices=tuple(notices),
    )


def _check_enough(documents: Sequence[Document], windows: Sequence[np.ndarray[Any, Any]], context: int) -> None:
    total = sum(len(window) for window in windows)
    plain = all(not document.messages for document in documents)
    if plain and total < context:
        raise UsageError(
            f"the text has {total} tokens in {len(documents)} documents, fewer than one window of {context}; "
            "give more text or a smaller context"
        )
    if not windows:
        raise UsageError(f"no answer begins within {context} tokens in any conversation; give a larger context")


def _encode(
    document: Document, tokenizer: PreTrainedTokenizerFast
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Token ids [t] and which are targets [t], of a whole document."""
    if not document.messages:
        ids = np.asarray(tokenizer(document.text, verbose=False)["input_ids"], dtype=np.int32)
        return ids, np.ones(len(ids), dtype=bool)
    rendered, spans = _render(document, tokenizer)
    # The template writes the special tokens itself.
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = np.asarray([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)
    targets = np.zeros(len(starts), dtype=bool)
    for low, high in spans:
        targets |= (starts >= low) & (starts < high)
    return np.asarray(encoded["input_ids"], dtype=np.int32), targets


def _render(document: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[str, list[tuple[int, int]]]:
    """A conversation by the chat template, and the character spans of its assistant turns.

    The span of a turn is what the template adds after the generation prompt: it needs templates whose text for a
    conversation begins with the text for its first turns, and refuses others by name.
    """
    turns = [dict(turn) for turn in document.messages]
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "the fine-tuning data are conversations, but the model's tokenizer has no chat template; "
            "give plain text (format: text), or a model that has one"
        )
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    spans = []
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = str(tokenizer.apply_chat_template(turns[:i], tokenize=False, add_generation_prompt=True))
        after = str(tokenizer.apply_chat_template(turns[: i + 1], tokenize=False))
        if not (whole.startswith(before) and whole.startswith(after)):
            raise UsageError(
                f"document '{document.id}': the chat template rewrites earlier turns, so the answer's tokens cannot "
                "be told from the prompt's; give conversations of one exchange"
            )
        spans.append((len(before), len(after)))
    return whole, spans

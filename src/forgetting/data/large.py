"""A large plain-text corpus as documents, with one row or piece in memory at a time.

Anything that is not plain text, or is malformed, is left to `documents.py`, which reads all of it and reports errors.
"""

from __future__ import annotations

import codecs
import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from .. import files
from ..config.schema import TextConfig
from ..display.numbers import several
from ..errors import ForgettingError
from . import cutting, formats
from .readers import WordError, check_words, encodable, kind, text_limit
from .sources import open_rows, row_limit
from .texts import Texts

log = logging.getLogger(__name__)
PIECE = 2**22
"""Bytes of a text that are decoded at a time."""
LEAST = 2**22
"""Bytes of a file below which it is read whole."""


class _UnusualError(Exception):
    """Not a plain text that can be read piece by piece."""


def is_large(config: TextConfig) -> bool:
    """Whether a corpus is a folder or a large file."""
    if config.source.startswith("miniature:"):
        return False
    path = Path(config.source).expanduser()
    try:
        return path.is_dir() or (path.is_file() and path.stat().st_size >= LEAST)
    except (OSError, ValueError):  # not a path, or too long for one
        return False


def read_texts(config: TextConfig) -> tuple[Texts, tuple[str, ...]] | None:
    """The documents of a large plain-text corpus, and notices, as from `load_corpus`.

    Returns:
        None for anything else: small, conversations, rows to be joined, a malformed file, a full disk.

    Raises:
        WordError: the text contains a word of millions of characters.
    """
    path = Path(config.source).expanduser()
    try:
        if not is_large(config):
            return None
        is_text = path.is_file() and kind(path) in (".txt", ".md")
        return _of_text(path, config) if is_text else _of_rows(config)
    except WordError:
        raise
    except (_UnusualError, ForgettingError, ValueError):
        return None
    except OSError as error:
        if files.no_room(error):
            log.warning("the disk is too full for temporary files; reading all of %s into memory", config.source)
        return None


def _of_rows(config: TextConfig) -> tuple[Texts, tuple[str, ...]]:
    """One document per row."""
    if config.documents not in ("auto", "rows"):
        raise _UnusualError
    rows, told = open_rows(config)
    texts, unique, lines = Texts(), cutting.UniqueNames(), cutting.LinesSeen()
    columns: dict[str, None] = {}
    count = replaced = 0
    for row in itertools.islice(rows, row_limit(config)):
        clean = encodable(row)
        replaced += clean is not row
        if not clean.keys() <= columns.keys():
            columns |= dict.fromkeys(clean)
            if formats.recognise(config, list(columns))[0].kind != "text":
                raise _UnusualError
        text = clean.get(config.text_column)
        if text is None:
            text = ""
        if not isinstance(text, str):
            raise _UnusualError
        lines.add(text)
        if text.strip() and len(texts) != config.max_documents:
            texts.add(unique.name(formats.row_id(clean, count)), text)
        count += 1
    if count < 2 or not len(texts) or (config.documents == "auto" and lines.are_wikitext):
        raise _UnusualError
    _, guessed = formats.recognise(config, list(columns))
    own = (
        [f"{replaced} of {several(count, 'row')} had lone surrogates (half characters), replaced by U+FFFD"]
        if replaced
        else []
    )
    return texts.finish(), _notices(config, told, [*own, *guessed, *formats.empty_rows(count, lines.empty)])


def _of_text(path: Path, config: TextConfig) -> tuple[Texts, tuple[str, ...]]:
    """One text, cut into documents."""
    shape, guessed = formats.recognise(config, [config.text_column])
    if shape.kind != "text" or config.documents == "rows":
        raise _UnusualError
    guess = config.documents == "auto"
    mode = cutting.guessed_cut_of_one(_pieces(path)) if guess else str(config.documents)
    found = ((name, text) for name, text in cutting.CUTS[mode](_ended(_pieces(path))) if text.strip())
    texts, unique, count = Texts(), cutting.UniqueNames(), 0
    for name, text in found if guess else itertools.islice(found, config.max_documents):
        count += 1
        if config.max_documents is None or count <= config.max_documents:
            texts.add(unique.name(name), text)
    if not count:
        raise _UnusualError
    return texts.finish(), _notices(config, (), [*guessed, *(cutting.notices_of(mode, count) if guess else [])])


def _notices(config: TextConfig, told: Iterable[str], own: Iterable[str]) -> tuple[str, ...]:
    return (*told, *(f"{PurePath(config.source).name}: {notice}" for notice in own))


def _pieces(path: Path) -> Iterator[str]:
    """The text of a file, with line feeds as line breaks, in pieces.

    Raises:
        _UnusualError: too large, blank, not UTF-8, or with carriage returns that are not part of Windows line breaks.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    total, held, visible = 0, "", False
    with files.opened(path) as file:
        while True:
            content = file.read(PIECE)
            total += len(content)
            try:
                text = held + decoder.decode(content, final=not content)
            except UnicodeDecodeError:
                raise _UnusualError from None
            held = "\r" if content and text.endswith("\r") else ""
            text = text[: len(text) - len(held)].replace("\r\n", "\n")
            if "\r" in text or total > text_limit(path):
                raise _UnusualError
            check_words(text, str(path))
            visible = visible or bool(text.strip())
            yield text
            if not content:
                break
    if not visible:
        raise _UnusualError


def _ended(pieces: Iterable[str]) -> Iterator[str]:
    """The same pieces, with a line break at the end of the text."""
    last = ""
    for piece in pieces:
        last = piece[-1:] or last
        yield piece
    if last != "\n":
        yield "\n"

"""Rows of one local file, by its suffix: text, JSONL, JSON, CSV, TSV (also as .gz or .zst), Parquet, Arrow.

Content is read literally: no cell becomes a number, and empty cells and cells that say NA are kept.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import files
from ..config.schema import TextConfig
from ..errors import ForgettingError, UsageError
from . import formats, parquet

Row = dict[str, Any]
SPACE = re.compile(r"\s")
MAX_WORD = 2**21
"""Maximum characters of a word, that is, without white space between them."""
LONE = re.compile("[\ud800-\udfff]")


class WordError(UsageError):
    """A text contains a word of millions of characters."""


def kind(path: Path) -> str:
    """A file's suffix in lower case; for a compressed file that of its content, such as `.jsonl` for `.jsonl.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in files.PACKED else suffix


def read_file(path: Path, config: TextConfig) -> Iterator[Row]:
    """Rows of a file.

    A text file is one row with the column `config.text_column`; its line breaks become line feeds.

    Raises:
        UsageError: an unsupported kind of file, or damaged content; names the file and place.
    """
    reader = READERS.get(kind(path))
    if reader is None:
        raise UsageError(
            f"{path}: cannot read '{kind(path) or 'no suffix'}' files; allowed: {', '.join(READERS)}, "
            f"also compressed as {' or '.join(files.PACKED)}"
        )
    return reader(path, config)


def text_limit(path: Path) -> int:
    """Maximum bytes of a plain text; no real one compresses to less than a 64th."""
    packed = path.suffix.lower() in files.PACKED
    return min(files.MAX_TEXT, max(2**28, 64 * path.stat().st_size)) if packed else files.MAX_TEXT


def check_words(text: str, where: str) -> None:
    """Refuse text with a very long word, which a tokenizer would hold in memory as a whole.

    Shorter words than MAX_WORD characters always pass, and words of twice as many never do.

    Raises:
        WordError: such a text.
    """
    for start in range(0, len(text) - MAX_WORD + 1, MAX_WORD):
        if not SPACE.search(text, start, start + MAX_WORD):
            raise WordError(f"{where}: {MAX_WORD:,} characters without a space; is it text?")


def line_feeds(text: str) -> str:
    """Text with Windows line breaks, and old Mac ones if there are no others, as line feeds."""
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


def without_nulls(value: Any, *, top: bool = True) -> Any:
    """An Arrow row without the null fields inside its columns.

    Arrow gives every struct all fields, so a message has a null for each field that only other messages have.
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(item, top=False) for key, item in value.items() if top or item is not None}
    return [without_nulls(item, top=False) for item in value] if isinstance(value, list) else value


def encodable(value: Any) -> Any:
    """The value itself, or a copy if some text in it has lone surrogates.

    JSON can contain half of a UTF-16 pair, such as "\\ud83d"; no tokenizer can read it.
    """
    if isinstance(value, str):
        if value.isascii():
            return value
        clean = LONE.sub("\ufffd", value)
        return value if clean == value else clean
    if isinstance(value, dict):
        items = {encodable(key): encodable(item) for key, item in value.items()}
        same = all(a is b for a, b in zip(items.values(), value.values(), strict=False)) and list(items) == list(value)
        return value if same else items
    if isinstance(value, list):
        items_ = [encodable(item) for item in value]
        return value if all(a is b for a, b in zip(items_, value, strict=True)) else items_
    return value


def arrow_rows(data: Iterable[Mapping[str, Any]], where: str) -> Iterator[Row]:
    """Rows of a `datasets` data set.

    Raises:
        ForgettingError: the Hub became unreachable while reading.
        UsageError: a row cannot be decoded; `where` names the data set.
    """
    try:
        for row in data:
            yield without_nulls(dict(row))
    except ConnectionError as error:
        raise ForgettingError(f"{where}: the Hub cannot be reached: {error}") from None
    except Exception as error:  # datasets decodes images and sounds with other libraries, which raise their own errors
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{where}: a row cannot be read: {why:.200}") from None


def _text(path: Path, config: TextConfig) -> Iterator[Row]:
    text = line_feeds(files.read_text(path, limit=text_limit(path)))
    return iter([{config.text_column: text}] if text.strip() else [])


def _jsonl(path: Path, config: TextConfig) -> Iterator[Row]:
    """One object per line, or one array, as some programs write despite the name."""
    return _json(path, config) if holds_array(path) else (row for _, row in files.json_rows(path))


def holds_array(path: Path) -> bool:
    """Whether a file begins like a JSON array, not like JSON Lines."""
    with files.opened(path) as file:
        return file.read(64).lstrip().startswith(b"[")


def _json(path: Path, config: TextConfig) -> Iterator[Row]:
    """An array of objects or texts, an object that contains one, a single row, or JSON Lines despite the name."""
    text = files.read_text(path)
    try:
        value = files.parse_json(text, str(path), unique=True)
    except UsageError:
        if not _is_object(text.lstrip().partition("\n")[0]):
            raise
        return _jsonl(path, config)
    if isinstance(value, dict):
        lists = [key for key, item in value.items() if isinstance(item, list)]
        is_row = not lists or _is_row(value, config)
        if len(lists) > 1 and not is_row:
            raise UsageError(
                f"{path}: an object with {len(lists)} lists ({', '.join(lists[:5])}); give an array of objects, or an "
                "object with one list"
            )
        value = [value] if is_row else value[lists[0]]
    if not isinstance(value, list):
        raise UsageError(f"{path}: needs an array of objects, got {type(value).__name__}")
    return (_entry(item, number, path, config) for number, item in enumerate(value, start=1))


def _is_row(value: Mapping[str, Any], config: TextConfig) -> bool:
    """Whether an object is itself a row, such as an article with a list of authors, and does not contain the rows."""
    if any(isinstance(value.get(name), list) for name in (config.messages_column, "conversations", "chosen")):
        return True
    try:
        formats.recognise(config, [name for name, item in value.items() if not isinstance(item, list)])
    except UsageError:
        return False
    return True


def _is_object(line: str) -> bool:
    try:
        return isinstance(files.parse_json(line, ""), dict)
    except UsageError:
        return False


def _entry(item: Any, number: int, path: Path, config: TextConfig) -> Row:
    if isinstance(item, str):
        return {config.text_column: item}
    if not isinstance(item, dict):
        raise UsageError(
            f"{path}: entry {number} of the array must be an object or a string, got {type(item).__name__}"
        )
    return item


def _csv(path: Path, _config: TextConfig) -> Iterator[Row]:
    """Comma-, semicolon- or tab-separated values with a header; every cell is text."""
    import pandas as pd

    text = files.read_text(path)
    mark = column_mark(text, path)
    files.check_table(text.lstrip().partition("\n")[0].count(mark) + 1, 0, str(path))
    if not text.strip():
        return iter([])
    try:
        table = pd.read_csv(io.StringIO(text, newline=""), sep=mark, dtype=str, keep_default_na=False, na_filter=False)
    except (ValueError, OverflowError) as error:
        problem = str(error).splitlines()[0].removeprefix("Error tokenizing data. C error: ")
        if "EOF inside string" in problem:
            row = problem.rpartition(" ")[2]
            at = f" in or before row {row}" if row.isdigit() and row != "0" else ""
            raise UsageError(f'{path}: cannot be read as a table: a quote (") is opened{at} and never closed') from None
        raise UsageError(
            f"{path}: cannot be read as a table: {problem}; texts that contain {mark!r} need quotes"
        ) from None
    check_header(text, mark, path)
    if not isinstance(table.index, pd.RangeIndex):  # pandas reads extra fields as row names
        raise UsageError(f"{path}: rows have more fields than the header; texts that contain {mark!r} need quotes")
    files.check_table(len(table.columns), len(table), str(path))
    names = [str(name).strip() for name in table.columns]
    return (
        {name: cell if isinstance(cell, str) else "" for name, cell in zip(names, cells, strict=True)}
        for cells in table.itertuples(index=False, name=None)
    )


def column_mark(text: str, path: Path) -> str:
    """A table's separator: a tab in TSV; a semicolon if the header has one and no comma."""
    header = text.lstrip().partition("\n")[0]
    return "\t" if kind(path) == ".tsv" else (";" if ";" in header and "," not in header else ",")


def check_header(text: str, mark: str, path: Path) -> None:
    """Refuse a repeated name in a header: readers silently take the last one or rename it.

    Raises:
        UsageError: a name is repeated.
    """
    header = next(csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=mark), [])
    names = [name.strip() for name in header]
    if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise UsageError(f"{path}: column '{twice[0]:.60}' occurs {names.count(twice[0])} times in the header")


def _parquet(path: Path, _config: TextConfig) -> Iterator[Row]:
    if path.suffix.lower() in files.PACKED:
        raise UsageError(f"{path}: Parquet is already compressed; unpack the file first")
    yield from map(without_nulls, parquet.rows(path))  # only as many as needed


def _arrow(path: Path, _config: TextConfig) -> Iterator[Row]:
    if path.suffix.lower() in files.PACKED:
        raise UsageError(f"{path}: a compressed Arrow file; unpack it first")
    yield from map(without_nulls, parquet.arrow_rows(path))


READERS: dict[str, Callable[[Path, TextConfig], Iterator[Row]]] = {
    ".txt": _text,
    ".md": _text,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
}
"""How each kind of file is read."""

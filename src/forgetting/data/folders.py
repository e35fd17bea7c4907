"""A folder as a corpus: tables joined, or one document per text file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..config.schema import TextConfig
from ..display.numbers import several
from ..errors import UsageError
from .readers import READERS, Row, arrow_rows, kind, read_file

SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?=$|[-_.\d])", re.IGNORECASE)
SAVED = ("dataset_info.json", "dataset_dict.json")
"""Files that `datasets.save_to_disk` writes into its folder."""
NAMED = 3
"""How many file names a notice lists."""


def read_folder(folder: Path, config: TextConfig) -> tuple[Iterator[Row], list[str]]:
    """Rows of a folder's files, and a notice that says which files were read.

    Files of rows (JSONL, Parquet, CSV, ...) are joined. If there are none, each text file is one row, with its path in
    the folder as `id`. A folder saved by `datasets` is read with it.

    Raises:
        UsageError: it has no readable file, or files of several splits and none chosen.
    """
    if any((folder / name).exists() for name in SAVED):
        return _saved(folder, config)
    found, chosen = files_of(folder, config)
    rest = [path for path in found if path not in set(chosen)]
    read = f"{folder.name}: read {several(len(chosen), 'file')} ({_names(chosen)})"
    notice = read + (f", skipped {len(rest)} ({_names(rest)})" if rest else "")
    return _rows(folder, chosen, config), [notice]


def files_of(folder: Path, config: TextConfig) -> tuple[list[Path], list[Path]]:
    """All files of a folder, and those of them to read.

    Raises:
        UsageError: none can be read, or they are of several splits and none is chosen.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder)))
    chosen = _one_split(folder, _of_one_sort(found), config)
    if not chosen:
        raise UsageError(f"{folder}: this folder has no file of a known kind; known: {', '.join(READERS)}")
    return found, chosen


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _of_one_sort(paths: Sequence[Path]) -> list[Path]:
    """Files of rows, without .json files that describe them; else .json; else text; else Markdown."""
    sorts = ({".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".csv", ".tsv"}, {".json"}, {".txt"}, {".md"})
    return next((found for sort in sorts if (found := [path for path in paths if kind(path) in sort])), [])


def _one_split(folder: Path, paths: list[Path], config: TextConfig) -> list[Path]:
    """The files of the chosen split; all files if they are text or belong to one split."""
    if not paths or kind(paths[0]) in (".txt", ".md"):
        return paths
    of = {path: _split(path.relative_to(folder)) for path in paths}
    if config.split is not None:
        chosen = [path for path in paths if of[path] == config.split.lower()]
        if not chosen:
            there = ", ".join(sorted(set(filter(None, of.values())))) or "none according to the file names"
            raise UsageError(f"{folder}: no file of split '{config.split}'; splits: {there}")
        return chosen
    if len(set(of.values())) > 1:
        names = ", ".join(sorted(name or "none" for name in set(of.values())))
        raise UsageError(f"{folder}: files of several splits ({names}); choose one with split, or give one file")
    return paths


def _split(path: Path) -> str | None:
    """The split with which a file's name begins, or else the name of a folder in its path."""
    found = next((match for part in reversed(path.parts) if (match := SPLIT.match(part))), None)
    return found.group(1).lower() if found else None


def _rows(folder: Path, paths: Iterable[Path], config: TextConfig) -> Iterator[Row]:
    for path in paths:
        rows = read_file(path, config)
        if kind(path) in (".txt", ".md"):
            rows = ({"id": path.relative_to(folder).as_posix(), **row} for row in rows)
        yield from rows


def _saved(folder: Path, config: TextConfig) -> tuple[Iterator[Row], list[str]]:
    """Rows of a folder written by `datasets.save_to_disk`, and a notice if a split was chosen by default."""
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged folder raises errors of Arrow, JSON or datasets
        raise UsageError(f"{folder}: not a data set that `datasets` can load: {str(error)[:200]}") from None
    notices = []
    if isinstance(data, datasets.DatasetDict):
        if config.split is None and "train" in data and len(data) > 1:
            others = ", ".join(str(name) for name in data if name != "train")
            notices = [f"{folder.name}: reading split train, not {others}; choose another one with split"]
        if (split := config.split or "train") not in data:
            raise UsageError(f"{folder}: no split '{split}'; splits: {', '.join(map(str, data))}")
        data = data[split]
    return arrow_rows(data, str(folder)), notices


def _names(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in itertools.islice(paths, NAMED))
    return names + (", ..." if len(paths) > NAMED else "")

"""Rows of a corpus from their source: a local file or folder, the Hub, or the miniature."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from .. import files
from ..config.schema import TextConfig
from ..errors import UsageError
from .folders import read_folder
from .readers import READERS, Row, read_file, without_nulls


def read_rows(config: TextConfig) -> tuple[list[Row], list[str]]:
    """All rows of a corpus, at least one, and notices about how they were read.

    Raises:
        UsageError: the source is missing, malformed or empty; names the file and line.
        ForgettingError: the Hub could not be reached.
    """
    found, notices = open_rows(config)
    rows = list(itertools.islice(found, row_limit(config)))
    if not rows:
        raise UsageError(f"{config.source}: empty; it has no rows")
    return rows, notices


def row_limit(config: TextConfig) -> int | None:
    """Maximum rows to read, None for all; at least two, because a single row is cut like a long text."""
    if config.max_documents is None or config.documents not in ("auto", "rows"):
        return None
    return max(2, config.max_documents)


def is_hub_id(source: str) -> bool:
    """Whether a source can only be a Hub data set: it is not a local path, and its name is not that of a file."""
    path = Path(source).expanduser()
    is_file = path.exists() or path.suffix.lower() in (*READERS, *files.PACKED, ".zip")
    return not is_file and not source.startswith("miniature:")


def open_rows(config: TextConfig) -> tuple[Iterator[Row], list[str]]:
    """All rows, read as they are needed, and notices; raises like `read_rows`, also while rows are read."""
    if config.source.startswith("miniature:"):
        from .miniature import rows

        return iter(rows(config.source.removeprefix("miniature:"))), []
    path = Path(config.source).expanduser()
    if path.is_dir():
        return read_folder(path, config)
    if not is_hub_id(config.source):
        if not path.exists():
            raise UsageError(f"{path}: no such file")
        return read_file(path, config), []
    from .hub_rows import hub_rows

    found = hub_rows(
        config.source,
        subset=config.subset,
        split=config.split,
        revision=config.revision,
        streaming=config.streaming,
    )
    return (without_nulls(row) for row in found), []

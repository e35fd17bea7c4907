"""Rows of a corpus from where they lie: a local file, the Hub, or the miniature. Errors name the file and line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import files
from ..config.schema import TextConfig
from ..errors import UsageError

Row = dict[str, Any]
LOCAL_SUFFIXES = (".txt", ".jsonl", ".parquet")


def read_rows(config: TextConfig) -> list[Row]:
    """All rows of a corpus, at least one.

    A .txt file is one row with the column `config.text_column`.

    Raises:
        UsageError: the source is missing, malformed or empty.
        ForgettingError: the Hub could not be reached.
    """
    rows = list(itertools.islice(_rows(config), _row_limit(config)))
    if not rows:
        raise UsageError(f"{config.source}: empty, no rows in it")
    return rows


def _row_limit(config: TextConfig) -> int | None:
    """Rows to read: a row is a document only where it is not cut or joined into others."""
    return config.max_documents if config.documents in ("auto", "rows") else None


def _rows(config: TextConfig) -> Iterator[Row]:
    if config.source.startswith("miniature:"):
        from .miniature import rows

        return iter(rows(config.source.removeprefix("miniature:")))
    path = Path(config.source).expanduser()
    if path.is_dir():
        raise UsageError(f"{path}: a directory; name a {', '.join(LOCAL_SUFFIXES)} file in it, or a Hub id")
    if path.exists() or path.suffix in (*LOCAL_SUFFIXES, ".json", ".csv", ".md", ".gz", ".zip"):
        return _local(path, config)
    from .hub_rows import hub_rows

    return hub_rows(
        config.source,
        subset=config.subset,
        split=config.split,
        revision=config.revision,
        streaming=config.streaming,
    )


def _local(path: Path, config: TextConfig) -> Iterator[Row]:
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    match path.suffix:
        case ".txt":
            text = files.read_text(path, limit=files.MAX_TEXT)
            return iter([{config.text_column: text}] if text.strip() else [])
        case ".jsonl":
            return (row for _, row in files.json_rows(path))
        case ".parquet":
            return _parquet(path)
    raise UsageError(f"{path}: cannot read '{path.suffix or 'no suffix'}' files; allowed: {', '.join(LOCAL_SUFFIXES)}")


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        files.check_table(file.metadata.num_columns, 0, str(path))  # rows are read as far as they are wanted
        yield from (row for batch in file.iter_batches() for row in batch.to_pylist())
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path}: not a Parquet file: {(str(error).splitlines() or ['damaged'])[0]}") from None

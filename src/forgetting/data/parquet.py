"""Reads Parquet and Arrow files within limits: a few bytes of a file may stand for billions of values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UsageError

MAX_ROW = 10**7
"""Maximum values of one column in one row."""
FEW, PER_BYTE = 10**6, 1000
"""Values per column that any file may contain, and values per byte that a larger one may."""
BATCH, BATCH_ROWS = 2**26, 2**16
"""Bytes and rows of a file that are read at once."""
BATCH_MEMORY, TABLE_MEMORY = 2**31, 2**33
"""Maximum bytes of memory for such a piece, and for the whole table of any file."""


def check(path: Path, metadata: Any) -> None:
    """Refuse a file by its metadata.

    Args:
        path: the file.
        metadata: pyarrow's metadata of the file.

    Raises:
        UsageError: more than MAX_COLUMNS columns, more values than real files of its size have, or more than MAX_ROW
            values per row.
    """
    files.check_table(metadata.num_columns, 0, str(path))
    most = max(FEW, PER_BYTE * path.stat().st_size)
    total = max(metadata.num_rows, sum(values for _, _, values in _groups(metadata)))
    if total > most:
        raise UsageError(f"{path}: {total:,} values in one column; the limit for a file of its size is {most:,}")
    for _, count, values in _groups(metadata):
        if values > MAX_ROW * count:
            raise UsageError(f"{path}: {values:,} values in {count:,} rows of one column; at most {MAX_ROW:,} per row")


def table_memory(path: Path) -> int:
    """Bytes of memory that the whole table of a file may take; fewer for a small file."""
    return min(TABLE_MEMORY, TABLE_MEMORY // 8 + PER_BYTE * path.stat().st_size)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file, a piece of a row group at a time, each of about BATCH bytes according to the metadata.

    Raises:
        UsageError: not a Parquet file, too large, or one whose values take far more memory than it states.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        check(path, file.metadata)
        for number, (group, count, values) in enumerate(_groups(file.metadata)):
            size = max(group.total_byte_size, 8 * values, 1)
            pieces = file.iter_batches(min(max(BATCH * count // size, 1), BATCH_ROWS), row_groups=[number])
            while True:
                with files.memory_bound(BATCH_MEMORY):
                    piece = next(pieces, None)
                    if piece is None:
                        break
                    found = piece.to_pylist()
                yield from found
    except MemoryError:  # includes Arrow's
        raise UsageError(
            f"{path}: a piece of it needs more than {BATCH_MEMORY:,} bytes of memory, or more than is available"
        ) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path}: not a Parquet file: {(str(error).splitlines() or ['damaged'])[0]}") from None


def arrow_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of an Arrow file, as `datasets` keeps them in its cache, or of a Feather file.

    Raises:
        UsageError: not such a file, too large, or one whose values take too much memory.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            for batch in _batches(file):
                files.check_table(batch.num_columns, 0, str(path))
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    with files.memory_bound(BATCH_MEMORY):
                        found = batch.slice(start, BATCH_ROWS).to_pylist()
                    yield from found
    except MemoryError:
        raise UsageError(f"{path}: a piece of it needs more than {BATCH_MEMORY:,} bytes of memory") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path}: not an Arrow file: {(str(error).splitlines() or ['damaged'])[0]}") from None


def _batches(file: Any) -> Iterator[Any]:
    """The pieces of an Arrow file in either of Arrow's two formats, stream or file."""
    import pyarrow as pa

    try:
        yield from pa.ipc.open_stream(file)
        return
    except pa.ArrowInvalid:
        if file.read_at(6, 0) != b"ARROW1":
            raise
    reader = pa.ipc.open_file(file)
    yield from map(reader.get_batch, range(reader.num_record_batches))


def _groups(metadata: Any) -> Iterator[tuple[Any, int, int]]:
    """A file's row groups, each with its number of rows, at least one, and the values of its longest column."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        values = max((group.column(i).num_values for i in range(group.num_columns)), default=0)
        yield group, max(group.num_rows, 1), values

"""Files of tables as columns: CSV with any usual delimiter, JSON, JSON lines, Parquet, Excel.

CSV is read without pandas, which takes longer to import than a fit takes.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forgetting import files
from forgetting.config.arguments import from_records
from forgetting.data import parquet
from forgetting.errors import UsageError

Table = dict[str, list[Any]]
DELIMITERS = (",", ";", "\t")
HEAD = 100_000
"""Characters of the first line by which the delimiter is told; fewer than csv takes in one cell."""
_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
"""A number with a decimal comma."""
_GROUPED = re.compile(r"[+-]?\d{1,3}(\.\d{3})+(,\d+)?")
"""A number whose thousands may be set apart by points."""
_WHOLE = re.compile(r"[+-]?\d{1,3}(\.000)+")
"""One or one thousand: `1.000`."""


def read_csv(path: Path) -> Table:
    """A CSV file whose cells are apart by commas, semicolons or tabs; cells stay text.

    Beside semicolons and tabs a number may have a decimal comma.

    Raises:
        UsageError: not CSV, a column twice, a line of another length, or numbers that can be read in two ways; names
            the line or column.
    """
    text = files.read_text(path, encoding="utf-8-sig")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        table = _columns(reader, path)
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: not CSV: {error}") from None
    if delimiter != "," and any(_COMMA.fullmatch(cell) for cells in table.values() for cell in cells):
        table = {name: _with_points(cells) for name, cells in table.items()}
    for name, cells in table.items():
        _refuse_thousands(path, name, cells)
    return table


def _delimiter(text: str) -> str:
    """What the first line's cells are apart by: whatever gives the most of them."""
    first = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0][:HEAD]
    return max(DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))


def _columns(reader: Any, path: Path) -> Table:
    names = [name.strip() for name in next(reader, [])]
    if not any(names):
        raise UsageError(f"{path}: the first line must name the columns, and it is empty")
    files.check_table(len(names), 0, str(path))
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UsageError(f"{path}: column '{min(doubled)}' is there twice")
    out: Table = {name: [] for name in names}
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(names):
            raise UsageError(f"{path}, line {reader.line_num}: {len(cells)} cells where there are {len(names)} columns")
        for name, cell in zip(names, cells, strict=True):
            out[name].append(cell.strip())
    if not out[names[0]]:
        raise UsageError(f"{path}: no row below the column names")
    return out


def _with_points(cells: list[str]) -> list[str]:
    """Numbers with a decimal comma, and points between thousands, as Python writes them."""

    def changed(cell: str) -> str:
        if _COMMA.fullmatch(cell):
            return cell.replace(",", ".")
        return cell.replace(".", "").replace(",", ".") if _GROUPED.fullmatch(cell) else cell

    return [changed(cell) for cell in cells]


def _refuse_thousands(path: Path, name: str, cells: Sequence[str]) -> None:
    """Refuse a column whose every number reads `1.000`, one or one thousand, or `1.000.000`."""
    numbers = [cell for cell in cells if cell and cell != "0"]
    if not numbers or not all(_GROUPED.fullmatch(cell) for cell in numbers):
        return
    if all(_WHOLE.fullmatch(cell) for cell in numbers) or any(cell.count(".") > 1 for cell in numbers):
        raise UsageError(
            f"{path}, column '{name}': is {numbers[0]} a whole number with its thousands set apart, or a number with "
            f"decimals? write {numbers[0].replace('.', '')} or {numbers[0].split('.')[0]}"
        )


def read_json_lines(path: Path) -> Table:
    """A JSON Lines file, one object a measurement."""
    out = [row for _, row in files.json_rows(path)]
    if not out:
        raise UsageError(f"{path}: no rows")
    return from_objects(path, out)


def load_json(path: Path) -> Any:
    """The value of a JSON file."""
    return files.parse_json(files.read_text(path, encoding="utf-8-sig"), str(path))


def from_objects(path: Path, objects: Sequence[Mapping[str, Any]]) -> Table:
    """`from_records` of rows from outside, which could each name columns of their own."""
    names: set[str] = set()
    for row in objects:
        names.update(row)
        files.check_table(len(names), 0, str(path))
    files.check_table(len(names), len(objects), str(path))
    return from_records(objects)


def read_parquet(path: Path) -> Table:
    """A Parquet file.

    Raises:
        UsageError: damaged, or too large.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
        files.check_table(metadata.num_columns, metadata.num_rows, str(path))
        parquet.check(path, metadata)
        with files.memory_bound(parquet.table_memory(path)):
            frame = pd.read_parquet(path)
            return {str(name): frame[name].tolist() for name in frame.columns}
    except MemoryError:
        most = f"{parquet.table_memory(path):,} bytes of memory"
        raise UsageError(f"{path}: takes more than {most}, or more than there is") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path}: not a Parquet file ({(str(error).splitlines() or ['damaged'])[0]})") from None


def read_excel(path: Path) -> Table:
    """The first sheet of an Excel workbook, by pandas and openpyxl.

    Raises:
        UsageError: openpyxl is not installed, the file is damaged or too large, or a column is there twice.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise UsageError(f"{path}: an Excel file needs openpyxl (pip install openpyxl); or save it as CSV")
    import pandas as pd

    if (size := path.stat().st_size) > files.MAX_CONFIG:
        raise UsageError(
            f"{path}: {size:,} bytes; at most {files.MAX_CONFIG:,} are read of an Excel file; save it as CSV"
        )
    try:
        frame = pd.read_excel(path, header=None)
    except Exception as error:  # openpyxl raises whatever the part at fault raises
        raise UsageError(
            f"{path}: not an Excel workbook ({(str(error).splitlines() or ['damaged'])[0]:.100})"
        ) from None
    files.check_table(len(frame.columns), len(frame), str(path))
    if len(frame) < 2:
        raise UsageError(f"{path}: no row below the column names")
    names = ["" if name != name else str(name).strip() for name in frame.iloc[0]]
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UsageError(f"{path}: column '{min(doubled)}' is there twice")
    body = frame.iloc[1:].astype(object)
    return {name: [None if cell != cell else cell for cell in body.iloc[:, i]] for i, name in enumerate(names)}

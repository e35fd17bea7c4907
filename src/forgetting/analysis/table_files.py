"""Reads table files as columns: CSV with any common delimiter, JSON, JSON lines, Parquet, Excel.

CSV is read without pandas, because importing pandas takes longer than a fit.
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

import numpy as np

from forgetting import files
from forgetting.config.arguments import from_records
from forgetting.data import parquet
from forgetting.display.numbers import several
from forgetting.errors import UsageError

Table = dict[str, list[Any]]
DELIMITERS = (",", ";", "\t")
HEAD = 100_000
"""Number of characters of the first line that are used to find the delimiter; fewer than csv allows in one cell."""
_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
"""A number with a decimal comma."""
_GROUPED = re.compile(r"[+-]?\d{1,3}(\.\d{3})+(,\d+)?")
"""A number with points that may separate thousands."""
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")
"""A cell that is a number, and so not a column name."""
_SEPARATOR = re.compile(r"sep=(.)", re.IGNORECASE)
"""A line that Excel writes above the column names."""
_WHOLE = re.compile(r"[+-]?\d{1,3}(\.000)+")
"""A number such as `1.000`, which may mean one or one thousand."""


def read_csv(path: Path) -> Table:
    """Read a CSV file with commas, semicolons, tabs, bars or spaces between cells; cells stay text.

    If the separator is not a comma, numbers may have a decimal comma. Comments (`#`) above the column names are
    skipped, and so are Excel's line `sep=;` and blank rows at the end.

    Raises:
        UsageError: not CSV, no column or row, a repeated column, a line of another length, or ambiguous numbers.
    """
    text = files.read_text(path)
    lines, delimiter, skipped = _body(text, "\t" if _is_tsv(path) else "")
    reader = csv.reader(io.StringIO(lines, newline=""), delimiter=delimiter, skipinitialspace=delimiter == " ")
    try:
        written = _columns(reader, path, skipped)
    except csv.Error as error:
        raise UsageError(f"{path}, line {skipped + reader.line_num}: not CSV: {error}") from None
    table = written
    if delimiter != "," and any(_COMMA.fullmatch(cell) for cells in table.values() for cell in cells):
        table = {name: _with_points(cells) for name, cells in table.items()}
    for name, cells in table.items():
        _refuse_thousands(path, name, cells, written[name])
    return table


def _is_tsv(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").removesuffix(".zst").endswith(".tsv")


def _body(text: str, known: str) -> tuple[str, str, int]:
    """The text from the column names on, the separator, and the number of lines above them."""
    lines = io.StringIO(text, newline="").readlines()
    at, delimiter, comment = 0, known, ""
    for at, line in enumerate(lines):  # noqa: B007
        said = _SEPARATOR.fullmatch(line.strip("\r\n"))
        if said and not delimiter:
            delimiter = said[1]
        elif line.startswith("#"):
            comment = line
        elif line.strip():
            break
    else:
        at = len(lines)
    first = "".join(lines[at : at + 2])
    delimiter = delimiter or _delimiter(first)
    if delimiter == " ":
        lines = [line.strip() + "\n" for line in lines]
    cells = _cells("".join(lines[at : at + 1]), delimiter)
    # a comment directly above numbers with one name per column gives the column names: `# step, loss`
    names = _cells(comment[1:].strip() or "#", delimiter)
    if comment and len(names) == len(cells) > 1 and any(_NUMBER.fullmatch(cell.strip()) for cell in cells):
        return comment[1:].lstrip() + "".join(lines[at:]), delimiter, at - 1
    return "".join(lines[at:]), delimiter, at


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line[:HEAD].strip("\r\n")], delimiter=delimiter, skipinitialspace=delimiter == " "), [])


def _delimiter(head: str) -> str:
    """The separator that splits the first line into most cells; bars and spaces only if no other splits it."""
    first, *rest = [line for line in re.split(r"[\r\n]+", head) if line.strip()] or [""]
    found = max(DELIMITERS, key=lambda mark: len(_cells(first, mark)))
    if len(_cells(first, found)) > 1:
        return found
    for mark in ("|", " "):
        several = [len(_cells(line.strip(), mark)) for line in (first, *rest[:1])]
        if several[0] > 1 and several[0] == several[-1]:
            return mark
    return found


def _columns(reader: Any, path: Path, skipped: int) -> Table:
    names = [name.strip() for name in next(reader, [])]
    while names and not names[-1]:  # empty columns at the right of a spreadsheet
        names.pop()
    if not names:
        raise UsageError(f"{path}: the first line must name the columns, but it is empty")
    files.check_table(len(names), 0, str(path))
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UsageError(f"{path}: column '{min(doubled)}' occurs twice")
    out: Table = {name: [] for name in names}
    last = 0
    for number, row in enumerate((row for row in reader if row), 1):
        cells = [cell.strip() for cell in row]
        if any(cells):
            last = number
            while len(cells) > len(names) and not cells[-1]:
                cells.pop()
        else:
            cells = [""] * len(names)
        if len(cells) != len(names):
            where = f"{path}, line {skipped + reader.line_num}"
            raise UsageError(f"{where}: {several(len(cells), 'cell')} instead of {len(names)}")
        for name, cell in zip(names, cells, strict=True):
            out[name].append(cell)
    if not last:
        raise UsageError(f"{path}: no row below the column names")
    return {name: cells[:last] for name, cells in out.items()}


def _with_points(cells: list[str]) -> list[str]:
    """Rewrite numbers with a decimal comma, and points between thousands, with a decimal point."""

    def changed(cell: str) -> str:
        if _COMMA.fullmatch(cell):
            return cell.replace(",", ".")
        return cell.replace(".", "").replace(",", ".") if _GROUPED.fullmatch(cell) else cell

    return [changed(cell) for cell in cells]


def _refuse_thousands(path: Path, name: str, cells: Sequence[str], written: Sequence[str]) -> None:
    """Refuse a column of numbers that may have thousands separators: all like `1.000`, or some like `1.000.000`.

    Args:
        path: the file.
        name: the column.
        cells: its cells, with decimal points.
        written: its cells as written in the file.
    """
    numbers = [cell for cell in cells if cell and cell != "0"]
    if not numbers or not all(_GROUPED.fullmatch(cell) for cell in numbers):
        return
    if all(_WHOLE.fullmatch(cell) for cell in numbers) or any(cell.count(".") > 1 for cell in numbers):
        came = written[cells.index(numbers[0])]
        raise UsageError(
            f"{path}, column '{name}': is {came} a whole number with a thousands separator, or a number with decimals? "
            f"write {numbers[0].replace('.', '')} or {numbers[0].split('.')[0]}"
        )


def read_json_lines(path: Path) -> Table:
    """Read a JSON Lines file, one object per measurement.

    Raises:
        UsageError: a line is not a JSON object, or there are no rows.
    """
    out = [row for _, row in files.json_rows(path)]
    if not out:
        raise UsageError(f"{path}: it has no rows")
    return from_objects(path, out)


def load_json(path: Path) -> Any:
    """Parse a JSON file."""
    return files.parse_json(files.read_text(path), str(path))


def from_objects(path: Path, objects: Sequence[Mapping[str, Any]]) -> Table:
    """`from_records` for rows of a file, which may have different columns; refuses too large a table."""
    names: set[str] = set()
    for row in objects:
        names.update(row)
        files.check_table(len(names), 0, str(path))
    files.check_table(len(names), len(objects), str(path))
    return from_records(objects)


def read_parquet(path: Path) -> Table:
    """Read a Parquet file.

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
        raise UsageError(f"{path}: needs more than {most}, or more than is available") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path}: not a Parquet file ({(str(error).splitlines() or ['damaged'])[0]})") from None


def read_excel(path: Path) -> Table:
    """Read the first sheet of an Excel workbook, with pandas and openpyxl.

    Raises:
        UsageError: openpyxl is not installed, the file is damaged or too large, a column occurs twice, or there is no
            row.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise UsageError(f"{path}: an Excel file needs openpyxl (pip install openpyxl); or save it as CSV")
    import pandas as pd

    if (size := path.stat().st_size) > files.MAX_CONFIG:
        raise UsageError(f"{path}: {size:,} bytes; the limit for an Excel file is {files.MAX_CONFIG:,}; save it as CSV")
    try:
        frame = pd.read_excel(path, header=None)
    except Exception as error:  # openpyxl raises anything for a faulty part
        raise UsageError(
            f"{path}: not an Excel workbook ({(str(error).splitlines() or ['damaged'])[0]:.100})"
        ) from None
    files.check_table(len(frame.columns), len(frame), str(path))
    if len(frame) < 2:
        raise UsageError(f"{path}: no row below the column names")
    names = ["" if name != name else str(name).strip() for name in frame.iloc[0]]
    while names and not names[-1] and frame.iloc[1:, len(names) - 1].isna().all():
        names.pop()
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UsageError(f"{path}: column '{min(doubled)}' occurs twice")
    body = frame.iloc[1:].astype(object)
    full = np.flatnonzero(body.notna().any(axis=1).to_numpy())
    if not full.size:
        raise UsageError(f"{path}: no row below the column names")
    body = body.iloc[: full[-1] + 1]  # without blank rows at the end
    return {name: [None if cell != cell else cell for cell in body.iloc[:, i]] for i, name in enumerate(names)}

"""Selects rows of a table by values of columns (`--only`, `only=`), recognises blank cells, and splits data sets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from forgetting.analysis.laws.base import Array
from forgetting.display.numbers import several
from forgetting.errors import UsageError, did_you_mean

BLANK = ("", "nan", "none", "<na>", "nat")
"""Missing cells as text, in lower case."""
MISSING = (*BLANK, "na", "n/a", "#n/a", "null")
"""The same, and other ways in which files write a missing number."""
DONE = "done"
"""Status of a finished run."""
GAP = "a value is missing"
"""Why a row without a required number is left out."""
MOST_CHOICES = 20
"""How many values of a column a message lists."""
_PADDED = re.compile(r"[+-]?0\d")
"""A text such as `01`, which is a name, not a number."""
_WHOLE = re.compile(r"[+-]?\d{1,400}")
EXACT = 2**53
"""Whole numbers from here on may be equal to others as floats, such as the names of runs by time."""

NUMBERED = "row numbers"
"""Attribute of a DataFrame whose index has the row numbers of the table that was given."""

Only = Mapping[str, Any]
"""By column, the value or values of which a row must have one."""


class Part(dict[str, list[Any]]):
    """Rows of a table of columns, which know their numbers in the table that was given.

    Attributes:
        numbers: [n] these numbers, from 0.
    """

    def __init__(self, columns: Mapping[str, list[Any]], numbers: Array) -> None:
        super().__init__(columns)
        self.numbers = numbers


def part_of(table: Mapping[str, Any], at: Sequence[int] | Array) -> Part:
    """The rows of a table of columns at these places, from 0; messages name them by their numbers in the whole."""
    return Part({str(name): [cells[i] for i in at] for name, cells in table.items()}, row_numbers(table)[at])


def with_column(table: Mapping[str, list[Any]], name: str, cells: list[Any]) -> Part:
    """A table of columns with one column added or replaced."""
    return Part({**table, name: cells}, row_numbers(table))


def numbered(frame: Any) -> Any:
    """A DataFrame whose rows, and parts of them, are named in messages by their numbers in it."""
    out = frame.copy(deep=False)
    out.index = range(len(out))
    out.attrs[NUMBERED] = True
    return out


def row_numbers(table: Any) -> Array:
    """[n] number of each row in the table that was given, from 0, also if this table is a part of it."""
    if isinstance(table, Part):
        return table.numbers
    if hasattr(table, "columns"):
        return np.asarray(table.index) if table.attrs.get(NUMBERED) else np.arange(len(table))
    return np.arange(len(next(iter(table.values()), [])))


def wanted(only: Only, argument: str = "only") -> dict[str, tuple[Any, ...]]:
    """The values of `only` as tuples, by column.

    Args:
        only: the values.
        argument: its name in messages.

    Raises:
        UsageError: a column without a value.
    """
    out = {}
    for name, given in only.items():
        many = isinstance(given, list | tuple | set | frozenset | range | np.ndarray)
        out[str(name)] = tuple(given) if many else (given,)
        if not out[str(name)]:
            raise UsageError(f"{argument}['{name}']: it has no value")
    return out


def is_blank(cell: Any) -> bool:
    """Whether a cell is missing: None, NaN, pandas' NA, or an empty text."""
    # recognise pandas' missing value by its name, because comparing with it does not give a bool
    return str(cell).strip().lower() in BLANK


def status_of(cell: Any) -> str:
    """A cell of the column `status`; `done` if it is blank, as for tables without this column."""
    return DONE if is_blank(cell) else str(cell)


def finished(column: Any) -> Array:
    """[n] whether each cell of a column `status` is that of a finished run."""
    cells, codes = distinct(column)
    return np.array([status_of(cell) == DONE for cell in cells], dtype=bool)[codes]


def without_status(column: Any) -> list[str]:
    """A sentence on the blank cells of a column `status`, as a list; an empty list if none or all are blank."""
    cells, codes = distinct(column)
    blank = np.array([is_blank(cell) for cell in cells], dtype=bool)[codes]
    count = int(blank.sum())
    if count in (0, blank.size):
        return []
    return [f"{several(count, 'row')} without a status {'counts' if count == 1 else 'count'} as finished"]


def is_missing(cell: Any) -> bool:
    """Whether a cell says that there is no number: blank, or NA, null, ..."""
    return str(cell).strip().lower() in MISSING


def cell_at(row: int, column: str, cell: Any) -> str:
    """A cell with its place in the table, for messages: `row 3, column 'step': 'n/a'`.

    Args:
        row: its number, from 0.
        column: its name.
        cell: its content.
    """
    return f"row {row + 1}, column '{column}': " + ("blank" if is_blank(cell) else f"'{cell!s:.60}'")


def rows_left_out(what: str, count: int, why: str, first: str) -> str:
    """A sentence about rows that are left out: `2 rows left out, as ... (the first: row 3, ...)`.

    Args:
        what: the rows, with their number.
        count: their number.
        why: what they lack.
        first: `cell_at` of the first.
    """
    return f"{what} left out, as {why} ({'' if count == 1 else 'the first: '}{first})"


def chosen_rows(column: Any, values: Sequence[Any], name: str) -> Array:
    """[n] whether each cell of a column has one of the values.

    Cells are compared as numbers if all are numbers or blank, ignoring case if all are true, false or blank, else as
    text. None and NaN select blank cells.

    Raises:
        UsageError: a value that no cell has.
    """
    cells, codes = distinct(column)
    read = _reader(cells)
    keys = [read(cell) for cell in cells]
    there = set(keys)
    picked = []
    for value in values:
        key = read(value)
        if key not in there:
            shown = _choices(cells, keys)
            raise UsageError(f"no row has {name} '{value}'; {did_you_mean(str(value), shown)}")
        picked.append(key)
    return np.array([key in picked for key in keys], dtype=bool)[codes]


def distinct(column: Any) -> tuple[list[Any], Array]:
    """Distinct cells of a pandas column (all cells of any other), and [n] index of each cell among them."""
    if hasattr(column, "factorize"):  # a study's table may have a million rows
        try:
            codes, found = column.factorize(use_na_sentinel=False)
        except TypeError:  # cells that cannot be compared, such as lists
            pass
        else:
            return list(found), np.asarray(codes)
    cells = list(column)
    return cells, np.arange(len(cells))


def coded(column: Any) -> tuple[list[str], Array]:
    """A column's distinct texts, sorted, and [n] index of each cell's text among them."""
    cells, codes = distinct(column)
    texts = [str(cell) for cell in cells]
    names = sorted(set(texts))
    place = {name: i for i, name in enumerate(names)}
    return names, np.array([place[text] for text in texts], dtype=np.int64)[codes]


def _reader(cells: Sequence[Any]) -> Any:
    """A function that converts cells of a column, and values to find in it, so that they can be compared."""
    full = [cell for cell in cells if not is_blank(cell)]
    if full and all(as_number(cell) is not None for cell in full):
        return _number_or_text
    if full and all(str(cell).strip().lower() in ("true", "false") for cell in full):
        return lambda cell: "" if is_blank(cell) else str(cell).strip().lower()
    return lambda cell: "" if is_blank(cell) and not isinstance(cell, str) else str(cell).strip()


def _number_or_text(cell: Any) -> Any:
    if is_blank(cell):
        return ""
    number = as_number(cell)
    return str(cell).strip() if number is None else number


def as_number(cell: Any) -> float | int | None:
    """A cell as a number; None for true and false, and for texts such as `01`. Whole numbers stay exact."""
    if isinstance(cell, bool | np.bool_) or (isinstance(cell, str) and _PADDED.match(cell.strip())):
        return None
    if (whole := _WHOLE.fullmatch(str(cell).strip())) and abs(int(whole[0])) >= EXACT:
        return int(whole[0])
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def _choices(cells: Sequence[Any], keys: Sequence[Any]) -> list[str]:
    """The values of a column for a message: numbers in order, then texts."""
    names = {key: "(blank)" if key == "" else str(cell).strip() for key, cell in zip(keys, cells, strict=True)}
    order = sorted(names, key=lambda key: (isinstance(key, str), key if not isinstance(key, str) else 0.0, str(key)))
    listed = [names[key] for key in order]
    more = [f"and {len(listed) - MOST_CHOICES} more"] if len(listed) > MOST_CHOICES else []
    return listed[:MOST_CHOICES] + more


def by_dataset(column: Any, label: str, numbers: Array) -> dict[str, Array]:
    """Places of the rows of each data set, sorted by name; all under `label` if every cell is blank.

    Args:
        column: the column `dataset`.
        label: name of the table.
        numbers: [n] the rows' numbers for messages, from 0.

    Raises:
        UsageError: blank cells together with named ones.
    """
    names, code = coded(column)
    blank = np.array([is_blank(name) for name in names], dtype=bool)
    if blank.all():
        return {label: np.arange(len(code))}
    if blank[code].any():
        at = int(numbers[np.flatnonzero(blank[code])[0]])
        raise UsageError(f"table '{label}', row {at + 1}, column 'dataset': blank; name the data set of every row")
    return {name: np.flatnonzero(code == i) for i, name in enumerate(names)}

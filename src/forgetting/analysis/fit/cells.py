"""Cells of a table as numbers; errors name the row and the column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from forgetting.analysis.laws.base import SIZES, Array, Variable, incomputable
from forgetting.errors import UsageError


@dataclass(frozen=True)
class Where:
    """The table in messages.

    Attributes:
        name: its name.
        numbers: [n] numbers of its rows, from 0, in the table that it is a part of.
    """

    name: str
    numbers: Array

    def __str__(self) -> str:
        return self.name

    def row(self, i: int) -> int:
        """The number of a row for readers, from 1."""
        return int(self.numbers[i]) + 1


def is_numeric(column: Any) -> bool:
    """Whether a column has a numeric type and no missing values."""
    kind = getattr(getattr(column, "dtype", None), "kind", "O")
    return kind in "iuf" and not (hasattr(column, "hasnans") and column.hasnans)


def floats(column: Any) -> Array:
    """A numeric column as floats."""
    return np.asarray(column, dtype=float)


def _number(cell: Any) -> float:
    """A cell as a number.

    Raises:
        TypeError, ValueError, OverflowError: it is not a number; true and false are not.
    """
    if isinstance(cell, bool | np.bool_):
        raise TypeError
    return float(cell)


def numbers(column: Any, name: str, rows: Array, where: Where, kind: Variable) -> Array:
    """The chosen rows of a column as floats, each of an allowed kind and size.

    Args:
        column: the whole column.
        name: its name, for messages.
        rows: [n] numbers of the rows, from 0.
        where: the table, for messages.
        kind: the values that are allowed.

    Raises:
        UsageError: a cell is not a number, or not an allowed one.
    """
    numeric = is_numeric(column)
    out = floats(column)[rows] if numeric else np.empty(rows.size)
    for i, cell in enumerate(() if numeric else np.asarray(column, dtype=object)[rows]):
        try:
            out[i] = _number(cell)
        except (TypeError, ValueError, OverflowError):
            place = f"{where}, row {where.row(rows[i])}, column '{name}'"
            raise UsageError(f"{place}: '{cell!s:.60}' is not a number") from None
    bad = ~kind.allows(out)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        cell = np.asarray(column, dtype=object)[rows[i]]
        said = f"{where}, row {where.row(rows[i])}, column '{name}': {cell} where {kind.allowed} is needed"
        skip = first_step(out) if name == "step" and np.isfinite(out[i]) else None
        raise UsageError(said if skip is None else f"{said}; {skip} leaves out the rows before the first step")
    refuse_sizes(out, name, rows, where)
    return out


def first_step(steps: Array) -> str | None:
    """The option that leaves out rows of step 0; None if there is no later step."""
    later = steps[steps > 0]
    first = min(1.0, float(later.min(initial=np.inf)))
    return f"--from-step {first:g} (from_step={first:g})" if later.size else None


def refuse_sizes(values: Array, name: str, rows: Array, where: Where) -> None:
    """Refuse numbers that are too large or too small to compute with (`incomputable`); NaN and infinities may pass.

    Args:
        values: [n] the chosen rows of the column.
        name: the column.
        rows: [n] row numbers of these in the table, from 0.
        where: the table, for the message.

    Raises:
        UsageError: there is such a number; the message names the first.
    """
    bad = incomputable(values) & np.isfinite(values)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise UsageError(f"{where}, row {where.row(rows[i])}, column '{name}': {values[i]:g} where {SIZES}")


def loose(column: Any, name: str, rows: Array, where: Where) -> Array:
    """The chosen rows of an optional column as floats; NaN for cells that are not numbers.

    Raises:
        UsageError: a number is too large or too small (`refuse_sizes`).
    """
    if is_numeric(column):
        out = floats(column)[rows]
    else:
        out = np.full(rows.size, np.nan)
        for i, cell in enumerate(np.asarray(column, dtype=object)[rows]):
            try:
                out[i] = _number(cell)
            except (TypeError, ValueError, OverflowError):
                continue
    refuse_sizes(out, name, rows, where)
    return out

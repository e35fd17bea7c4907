"""Selects the runs that all others are compared with, by label or by values of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forgetting.analysis.compare.runs import labels_of_rows
from forgetting.analysis.compare.source import Key, Run
from forgetting.analysis.selection import as_number, is_blank, wanted
from forgetting.analysis.table_files import Table
from forgetting.analysis.tables import rows
from forgetting.errors import UsageError, did_you_mean

MITIGATION = "mitigation"


@dataclass(frozen=True)
class Reference:
    """The runs that all others are compared with; without a mitigation, unless a filter names one.

    Attributes:
        label: label of the runs; empty for any.
        where: by column, the values of which a row must have one.
    """

    label: str = ""
    where: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __str__(self) -> str:
        """`lora`, or `peft_type=LORA, rank=32 or 64`."""
        filters = [f"{column}={' or '.join(values)}" for column, values in self.where]
        return ", ".join([self.label, *filters] if self.label else filters)

    def rows(self, table: Table) -> list[bool]:
        """Whether each row of a table has the label and the values."""
        labels = labels_of_rows(table)
        return [
            self.label in ("", labels[i]) and all(_has(table, i, column, values) for column, values in self.where)
            for i in range(rows(table))
        ]

    def holds(self, key: Key, runs: Sequence[Run]) -> bool:
        """Whether a curve belongs to the reference; interpolated weights never do."""
        if any(run.interpolated for run in runs) or (key.mitigation and MITIGATION not in dict(self.where)):
            return False
        return all(run.chosen for run in runs) if self.where else key.label == self.label


def reference_of(given: str | Sequence[str] | Mapping[str, Any] | None, tables: Mapping[str, Table]) -> Reference:
    """The reference that an argument means.

    Args:
        given: a label; `COLUMN=VALUE`; several of these, where a run must match every column, with any of the values
            given for it; or values by column. None means the only label of the tables.
        tables: rows by data set.

    Raises:
        UsageError: no such label, column or value, two labels, or None although there are several.
    """
    labels = labels_of(tables)
    if not labels and (given is None or isinstance(given, str)):
        return Reference(given or "")  # reading the table reports what is missing
    if given is None or (not isinstance(given, str) and not given):
        if len(labels) == 1:
            return Reference(labels[0])
        raise UsageError(
            f"reference: which runs should the others be compared with? give a label, or COLUMN=VALUE; "
            f"{did_you_mean('', labels)}"
        )
    if isinstance(given, Mapping):
        items = [(name, str(value)) for name, values in wanted(given, "reference").items() for value in values]
        return _checked(Reference("", _where(items)), tables)
    label, items = "", []
    for text in [given] if isinstance(given, str) else given:
        column, equals, value = text.partition("=")
        if text in labels or not equals:
            if label:
                raise UsageError(f"reference: two labels, '{label}' and '{text}'; give one, or filters COLUMN=VALUE")
            label = text
        else:
            items.append((column.strip(), value.strip()))
    if label and label not in labels:
        raise UsageError(f"no runs of '{label}' to compare others with; {did_you_mean(label, labels)}")
    return _checked(Reference(label, _where(items)), tables)


def labels_of(tables: Mapping[str, Table]) -> list[str]:
    """The labels in any of the tables."""
    found: dict[str, None] = {}
    for table in tables.values():
        found |= dict.fromkeys(labels_of_rows(table) if {"label", "method"} & set(table) else ())
    return list(found)


def _where(items: Sequence[tuple[str, str]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((name, tuple(v for n, v in items if n == name)) for name in dict.fromkeys(n for n, _ in items))


def _checked(reference: Reference, tables: Mapping[str, Table]) -> Reference:
    """The reference, if a row of a table belongs to it.

    Raises:
        UsageError: no row has one of the columns or values, or all of them together.
    """
    for column, values in reference.where:
        if not any(column in table for table in tables.values()):
            columns = dict.fromkeys(name for table in tables.values() for name in table)
            raise UsageError(f"reference {column}={values[0]}: no column '{column}'; {did_you_mean(column, columns)}")
        for value in values:
            cells = [cell for table in tables.values() for cell in table.get(column, ())]
            if not any(_same(cell, value) for cell in cells):
                known = sorted({str(cell) for cell in cells})
                raise UsageError(f"reference: no row has {column} '{value}'; {did_you_mean(value, known)}")
    if reference.where and not any(any(reference.rows(table)) for table in tables.values()):
        raise UsageError(f"reference: no row has all of {reference}")
    return reference


def _has(table: Table, i: int, column: str, values: Sequence[str]) -> bool:
    return column in table and any(_same(table[column][i], value) for value in values)


def _same(cell: Any, value: str) -> bool:
    """Whether a cell equals a value given as text: both blank, the same text ignoring case, or the same number."""
    if is_blank(cell) or is_blank(value):
        return is_blank(cell) and is_blank(value)
    if str(cell).strip().lower() == value.strip().lower():
        return True
    number = as_number(cell)
    return number is not None and number == as_number(value)

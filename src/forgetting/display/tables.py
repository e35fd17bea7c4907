"""A result as a reader sees it: lines, a table and notes, as plain text, for a terminal, or as HTML for notebooks."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SHOWN_ROWS = 60
"""Rows shown in a notebook; the result's frame has the rest."""


@dataclass(frozen=True)
class Shown:
    """Lines, a table and notes.

    Attributes:
        heading: lines above the table; the first is the title.
        columns: column names.
        rows: for each row, one text per column.
        notes: lines below the table.
    """

    heading: Sequence[str]
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Make every text one line that cannot control a terminal: names and answers in it come from elsewhere."""
        for field in ("heading", "columns", "notes"):
            object.__setattr__(self, field, tuple(map(visible, getattr(self, field))))
        object.__setattr__(self, "rows", tuple(tuple(map(visible, row)) for row in self.rows))

    def text(self) -> str:
        """Plain text, aligned."""
        table = [aligned([self.columns, *self.rows])] if self.rows else []
        return "\n\n".join("\n".join(part) for part in (self.heading, table, self.notes) if part)

    def html(self) -> str:
        """HTML in which every text is escaped."""
        lines = [html.escape(line) for line in self.heading]
        parts = [f"<p>{'<br>'.join([f'<strong>{lines[0]}</strong>', *lines[1:]])}</p>"] if lines else []
        if self.rows:
            body = "".join(_row("td", row) for row in self.rows[:SHOWN_ROWS])
            parts.append(f"<table><thead>{_row('th', self.columns)}</thead><tbody>{body}</tbody></table>")
        notes = [*self.notes]
        if len(self.rows) > SHOWN_ROWS:
            notes.append(f"only the first {SHOWN_ROWS} of {len(self.rows)} rows are shown")
        if notes:
            parts.append(f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in notes)}</ul>")
        return f"<div>{''.join(parts)}</div>"

    def table(self) -> Table:
        """The table for a terminal; numeric columns are right-aligned."""
        from rich.table import Table
        from rich.text import Text

        made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
        for i, name in enumerate(self.columns):
            numbers = all(is_number(row[i]) for row in self.rows)
            # broken over two lines where it is too narrow: a number without its last digits is another number
            made.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
        for row in self.rows:
            made.add_row(*(Text(cell) for cell in row))
        return made

    def rich(self) -> RenderableType:
        """Everything, for a terminal."""
        from rich.console import Group
        from rich.text import Text

        table = [self.table()] if self.rows else []
        return Group(*(Text(line) for line in self.heading), *table, *(Text(line) for line in self.notes))


class Result(ABC):
    """Base of results: prints as text, and a notebook shows it as tables."""

    @abstractmethod
    def shown(self) -> Sequence[Shown]:
        """What a reader sees, part by part."""

    def __str__(self) -> str:
        """The result as plain text."""
        return "\n\n".join(part.text() for part in self.shown())

    def _repr_html_(self) -> str:
        """The result as HTML, for notebooks."""
        return "".join(part.html() for part in self.shown())


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines with aligned columns."""
    table = [[visible(cell) for cell in row] for row in table]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table)
    return "\n".join(lines)


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def is_number(cell: str) -> bool:
    """Whether a cell looks like a number, or like a placeholder for an unknown one."""
    return not cell.strip("+-−– ") or cell.lstrip("+-−< ")[:1].isdigit()

"""Results on standard output, notices on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

from ..display.tables import Shown
from ..errors import visible


class OneLine(logging.Formatter):
    """A record as one line, whatever stands in it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return visible(super().format(record))


def say(line: str) -> None:
    """One line on standard error, whatever stands in it."""
    sys.stderr.write(f"{visible(line)}\n")


def print_shown(parts: Iterable[Shown]) -> None:
    """Print parts of a result: lines as they are, tables to the terminal's width."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:  # wide enough for the tables where no terminal says how wide it is
        console = Console(highlight=False, width=140)
    for part in parts:
        for line in part.heading:
            console.print(line, markup=False, soft_wrap=True)
        if part.rows:
            console.print(part.table())
        for line in part.notes:
            console.print(line, markup=False, soft_wrap=True)

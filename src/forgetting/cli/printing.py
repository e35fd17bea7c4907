"""Results on standard output, notices on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence

from ..display.tables import Shown
from ..errors import visible


class OneLine(logging.Formatter):
    """A record on one line, whatever it contains."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return visible(super().format(record))


def say(line: str) -> None:
    """Print one line on standard error, whatever it contains."""
    sys.stderr.write(f"{visible(line)}\n")


def print_shown(parts: Iterable[Shown]) -> None:
    """Print parts of a result: lines unchanged, tables at the terminal's width."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:  # without a terminal there is no width: make it wide enough for the tables
        console = Console(highlight=False, width=1000)
    for part in parts:
        for line in part.heading:
            console.print(line, markup=False, soft_wrap=True)
        if part.rows:
            console.print(part.table())
        for line in part.notes:
            console.print(line, markup=False, soft_wrap=True)


def quiet_libraries() -> None:
    """Keep standard error for our notices, without other libraries' messages, and standard output for the result."""
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("notice: %(message)s"))
    logger = logging.getLogger("forgetting")
    logger.handlers, logger.propagate = [handler], False


def say_notices(notices: Sequence[str]) -> None:
    """Print each on one line on standard error, once."""
    for notice in dict.fromkeys(notices):
        say(f"notice: {notice}")

"""Foreign text in Markdown: shown literally, and never as a mention."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from ..errors import visible
from .tables import Shown, is_number

MARKUP = re.compile(r"[\\`*_\[\]|#~!]")
"""Characters with a meaning in Markdown; a backslash before one removes it."""


def code(name: str) -> str:
    """A name as inline code that the name itself cannot end."""
    return "`" + visible(name).replace("`", "'").replace("|", "/") + "`"


def escaped(text: str) -> str:
    """Text that Markdown shows literally: no markup, no links, no mentions."""
    return MARKUP.sub(r"\\\g<0>", html.escape(visible(text), quote=False)).replace("@", "@<!-- -->")


def as_markdown(parts: Iterable[Shown]) -> str:
    """Parts of a result as Markdown: lines, tables and lists of notes."""
    blocks = []
    for part in parts:
        blocks += [f"{escaped(line)}" for line in part.heading]
        if part.rows:
            numbers = [all(is_number(row[i]) for row in part.rows) for i in range(len(part.columns))]
            lines = [part.columns, *part.rows]
            cells = ["| " + " | ".join(map(escaped, line)) + " |" for line in lines]
            cells.insert(1, "|" + "|".join("---:" if right else "---" for right in numbers) + "|")
            blocks.append("\n".join(cells))
        if part.notes:
            blocks.append("\n".join(f"- {escaped(note)}" for note in part.notes))
    return "\n\n".join(blocks) + "\n"

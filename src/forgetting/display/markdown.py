"""Text of others in Markdown: names and sentences that stay what they are, and mention nobody."""

from __future__ import annotations

import html
import re

from ..errors import visible

MARKUP = re.compile(r"[\\`*_\[\]|#~!]")
"""What Markdown takes for more than a character; a backslash before it keeps it one."""


def code(name: str) -> str:
    """A name as Markdown code that it cannot break out of."""
    return "`" + visible(name).replace("`", "'").replace("|", "/") + "`"


def escaped(text: str) -> str:
    """Text as Markdown shows it: no markup, no links, nobody mentioned."""
    return MARKUP.sub(r"\\\g<0>", html.escape(visible(text), quote=False)).replace("@", "@<!-- -->")

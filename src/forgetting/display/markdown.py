"""Foreign text in Markdown: shown literally, and never as a mention."""

from __future__ import annotations

import html
import re

from ..errors import visible

MARKUP = re.compile(r"[\\`*_\[\]|#~!]")
"""Characters with a meaning in Markdown; a backslash before one removes it."""


def code(name: str) -> str:
    """A name as inline code that the name itself cannot end."""
    return "`" + visible(name).replace("`", "'").replace("|", "/") + "`"


def escaped(text: str) -> str:
    """Text that Markdown shows literally: no markup, no links, no mentions."""
    return MARKUP.sub(r"\\\g<0>", html.escape(visible(text), quote=False)).replace("@", "@<!-- -->")

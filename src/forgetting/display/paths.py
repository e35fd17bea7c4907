"""Shorter labels: `replay text=/home/me/wiki.txt` is shown as `replay text=wiki.txt`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

VALUE = re.compile(r"(?<= )(\w+)=(.*?)(?= \w+=| \+ |$)")
"""An option and its value in a label; a value may contain spaces."""
ABSOLUTE = re.compile(r"/|[A-Za-z]:[/\\]")
PARTS = re.compile(r"(?<=[/\\])")


def shortener(labels: Iterable[str]) -> Callable[[str], str]:
    """Shortens the absolute paths in labels to their last part, or to as many as tell them from all other values.

    Labels identify runs in tables; shorten them only where they are shown.

    Args:
        labels: all that are shown together.

    Returns:
        The shorter form of a label; values that are not in `labels` are kept.

    Examples:
        >>> shown = shortener(["replay text=/data/a/x.txt", "replay text=/data/b/x.txt", "kl text=/y.txt weight=2.0"])
        >>> shown("replay text=/data/b/x.txt"), shown("kl text=/y.txt weight=2.0")
        ('replay text=b/x.txt', 'kl text=y.txt weight=2.0')
    """
    values = {found[2] for label in set(labels) for found in VALUE.finditer(label)}
    short = {value: _shortest(value, values - {value}) for value in values if ABSOLUTE.match(value)}
    return lambda label: VALUE.sub(lambda found: f"{found[1]}={short.get(found[2], found[2])}", label)


def _shortest(path: str, others: set[str]) -> str:
    """The fewest last parts of a path that no other value ends with; the path itself if there are none."""
    parts = PARTS.split(path)
    for first in range(len(parts) - 1, 0, -1):
        tail = "".join(parts[first:])
        if not any(other == tail or re.search(rf"[/\\]{re.escape(tail)}$", other) for other in others):
            return tail
    return path

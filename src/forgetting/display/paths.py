"""Shorter labels: `replay text=/home/me/wiki.txt` is shown as `replay text=wiki.txt`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

VALUE = re.compile(r"(?<= )(\w+)=(.*?)(?= \w+=| \+ |$)")
"""An option and its value in a label; a value may contain spaces."""
ABSOLUTE = re.compile(r"/|[A-Za-z]:[/\\]")
PARTS = re.compile(r"(?<=[/\\])")


def shortener(labels: Iterable[str]) -> Callable[[str], str]:
    """Return a function that shortens the absolute paths in a label to their last part, or to more if it is ambiguous.

    Labels identify runs in tables; shorten them only where they are shown.

    Args:
        labels: all labels that are shown together.

    Returns:
        A function from a label to its shorter form; it keeps values that are not in `labels`.

    Examples:
        >>> shown = shortener(["replay text=/data/a/x.txt", "replay text=/data/b/x.txt", "kl text=/y.txt weight=2.0"])
        >>> shown("replay text=/data/b/x.txt"), shown("kl text=/y.txt weight=2.0")
        ('replay text=b/x.txt', 'kl text=y.txt weight=2.0')
    """
    values = {found[2] for label in set(labels) for found in VALUE.finditer(label)}
    short = {value: _shortest(value, values - {value}) for value in values if ABSOLUTE.match(value)}
    return lambda label: VALUE.sub(lambda found: f"{found[1]}={short.get(found[2], found[2])}", label)


def _shortest(path: str, others: set[str]) -> str:
    """The shortest end of a path, in whole parts, that no other value ends with; the path itself if there is none."""
    parts = PARTS.split(path)
    for first in range(len(parts) - 1, 0, -1):
        tail = "".join(parts[first:])
        if not any(other == tail or re.search(rf"[/\\]{re.escape(tail)}$", other) for other in others):
            return tail
    return path

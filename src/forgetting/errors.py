"""The exceptions that a user may see. A message says what came, what is allowed, and what to do.

The command prints each as one line on standard error and exits with the code of its class. Python callers catch
`ForgettingError`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: str) -> str:
    """Foreign text on one line that cannot control a terminal; unprintable characters are escaped as in Python.

    Escapes line breaks and escape sequences, which could forge messages, and marks that change the writing direction.

    Examples:
        >>> visible("a\\nerror: b\\x1b[31m"), visible("naïve – ± 1")
        ('a\\\\nerror: b\\\\x1b[31m', 'naïve – ± 1')
    """
    return _NOT_SHOWN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


class ForgettingError(Exception):
    """Something failed at run time (exit code 1). Everything measured before the failure is kept.

    Args:
        lines: the message; each item is shown on one line, whatever it contains.
    """

    exit_code = 1

    def __init__(self, *lines: object) -> None:
        super().__init__(*(visible(line) if isinstance(line, str) else line for line in lines))

    def __str__(self) -> str:
        """The lines."""
        return "\n".join(map(str, self.args))


class UsageError(ForgettingError):
    """The user's arguments, configuration or files are wrong (exit code 2). No work was started."""

    exit_code = 2


class OverBudgetError(ForgettingError):
    """A model forgot more than its budget allows (exit code 3)."""

    exit_code = 3


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A clause that suggests the closest match, if there is one, and lists all choices.

    Args:
        name: what came.
        choices: what is allowed, listed in the given order.

    Returns:
        For example `did you mean 'lora'? (choices: lora, full)`.

    Examples:
        >>> did_you_mean("loar", ["lora", "full"])
        "did you mean 'lora'? (choices: lora, full)"
        >>> did_you_mean("xyz", ["lora", "full"])
        'choices: lora, full'
    """
    names = list(choices)
    close = difflib.get_close_matches(name, names, n=1)
    listed = "choices: " + ", ".join(names)
    return f"did you mean '{close[0]}'? ({listed})" if close else listed

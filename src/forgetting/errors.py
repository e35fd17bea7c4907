"""The exceptions a user may meet. A message says what came, what is allowed, and what to do.

The command turns each into one line on standard error and the exit code of its class; library callers catch
`ForgettingError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ForgettingError(Exception):
    """Something failed at run time (exit code 1). What was measured before it is kept."""

    exit_code = 1


class UsageError(ForgettingError):
    """The user's arguments, configuration or files are wrong (exit code 2). Nothing was started."""

    exit_code = 2


class OverBudgetError(ForgettingError):
    """A model forgot more than its budget allows (exit code 3)."""

    exit_code = 3


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """One clause naming the close match, if there is one, and all the choices.

    Args:
        name: what came.
        choices: what is allowed; listed in the given order.

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

"""Commands that a reader may paste into a shell."""

from __future__ import annotations

import os
import shlex
import subprocess


def command(*words: object, windows: bool = os.name == "nt") -> str:
    """A call of `forgetting` with each word quoted where the shell needs it.

    Examples:
        >>> command("report", "my studies/news", windows=False)
        "forgetting report 'my studies/news'"
        >>> command("report", "my studies/news", windows=True)
        'forgetting report "my studies/news"'
    """
    every = ["forgetting", *map(str, words)]
    return subprocess.list2cmdline(every) if windows else shlex.join(every)


def exact(value: float) -> str:
    """A number in the fewest digits that read back as the same number.

    Examples:
        >>> exact(295680.0), exact(0.15)
        ('295680', '0.15')
    """
    number = float(value)
    return f"{number:.0f}" if number.is_integer() else repr(number)

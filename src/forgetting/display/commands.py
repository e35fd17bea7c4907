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

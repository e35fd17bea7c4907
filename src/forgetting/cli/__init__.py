"""The command: parses, calls one function, prints. Nothing here is imported by the library.

A file a command or two; what works on this machine, and what is missing (`doctor`); progress and tables for a terminal.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import MutableMapping
from typing import NoReturn

from ..display.streams import make_safe


def main() -> NoReturn:
    """Run the command line and exit, as `app.main` does; a package that is missing for it is one line."""
    make_safe()
    # modules stay: looking for garbage among them takes a third of the start and end of a command
    gc.set_threshold(10_000, 10, 10)
    atexit.register(gc.freeze)
    # numpy's matrices here are small: a second thread costs more than it saves, and moves the last digits
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    wait_briefly(os.environ)
    try:
        from .app import main as run

        if {"-h", "--help"} & {*sys.argv[1:]} or len(sys.argv) == 1:
            from .missing import note

            sys.stderr.write(note())
        run()
    except ImportError as error:
        from .environment import plainly
        from .missing import leave

        if sys.argv[1:2] == ["doctor"]:
            sys.stdout.write(plainly(sys.argv[2:]) + "\n")
            sys.exit(1)
        leave(error)


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Have a thread that waits for another one sleep soon, unless the user has said how threads wait.

    GNU's OpenMP, which torch has on Linux, looks 300,000 times whether the other thread is done before it sleeps. Where
    other programs hold the processors, the other one does not even run, and nearly all processor time goes into
    looking. The threads and their work stay the same, and so does every number. It is read when torch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & {*environment}:
        environment["GOMP_SPINCOUNT"] = "1000"


__all__ = ["main"]

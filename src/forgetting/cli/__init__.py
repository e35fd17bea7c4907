"""The command: it parses arguments, calls one function and prints the result. The library does not import it.

Most commands have a file of their own; others hold `doctor`'s checks of this machine, and progress and tables for a
terminal.
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
    """Run the command line and exit, like `app.main`; a missing package gives a one-line error."""
    make_safe()
    # modules are never freed, and collecting garbage among them takes a third of a command's start and end
    gc.set_threshold(10_000, 10, 10)
    atexit.register(gc.freeze)
    # numpy's matrices here are small: a second thread costs more time than it saves, and changes the last digits
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
    """Make idle threads sleep soon, unless the user has set how threads wait.

    A waiting thread of GNU OpenMP, which torch uses on Linux, spins 300,000 times before it sleeps. If other programs
    use the processors, the thread that it waits for does not run, and nearly all processor time goes into spinning.
    This changes neither the threads, nor their work, nor any number. torch reads the setting when it is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & {*environment}:
        environment["GOMP_SPINCOUNT"] = "1000"


__all__ = ["main"]

"""The command: parses, calls one function, prints. Nothing here is imported by the library.

A file a command or two; what works on this machine, and what is missing (`doctor`); progress and tables for a terminal.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
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


__all__ = ["main"]

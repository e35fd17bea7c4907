"""Controls the terminal output of lm-eval and the libraries that it uses."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def quiet() -> None:
    """Silence the libraries' advice and progress bars, except lm-eval's own bars on standard error."""
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("lm_eval", "lm-eval", "datasets", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.suppress(ImportError):
        import datasets
        from transformers.utils import logging as transformers_logging

        datasets.disable_progress_bars()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextlib.contextmanager
def console() -> Iterator[None]:
    """Redirect standard output to standard error; discard standard error, with its progress bars, if not a terminal."""
    with Path(os.devnull).open("w") as nowhere:
        bars = sys.stderr if sys.stderr.isatty() else nowhere
        with contextlib.redirect_stdout(sys.stderr), contextlib.redirect_stderr(bars):
            yield

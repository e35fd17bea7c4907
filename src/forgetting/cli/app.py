"""The entry point: the subcommands, and the exit codes of errors and signals."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from .. import __version__
from ..display.streams import WriteError, leave_stdout
from ..errors import ForgettingError
from ..files import no_memory, no_room
from ..tuning import stopping
from . import card, chain, compare, doctor, evaluate, laws, measure, pilot, run, scale, study
from .options import Listing
from .printing import OneLine, say

app = typer.Typer(
    name="forgetting",
    help="Measure, predict and budget what fine-tuning makes a language model forget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("study", cls=Listing)(study.study_command)
app.command("pilot", cls=Listing)(pilot.pilot_command)
app.command("run", cls=Listing)(run.run_command)
app.command("measure", cls=Listing)(measure.measure_command)
app.command("check", cls=Listing)(measure.check_command)
app.command("chain", cls=Listing)(chain.chain_command)
app.command("card", cls=Listing)(card.card_command)
app.command("scale", cls=Listing)(scale.scale_command)
app.command("evaluate", cls=Listing)(evaluate.evaluate_command)
app.command("fit", cls=Listing)(laws.fit_command)
app.command("predict", cls=Listing)(laws.predict_command)
app.command("plan", cls=Listing)(laws.plan_command)
app.command("compare", cls=Listing)(compare.compare_command)
app.command("report", cls=Listing)(study.report_command)
app.command("table", cls=Listing)(study.table_command)
app.command("doctor", cls=Listing)(doctor.doctor_command)


_leaving: int | None = None
"""The signal that stops this process."""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"forgetting {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure, predict and budget what fine-tuning makes a language model forget."""


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 3 over budget, 130 or 143 stopped by a signal."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    if logging.lastResort is not None:  # shows the notices of commands that set up no logging
        logging.lastResort.setFormatter(OneLine())
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # fail here if it cannot be written, not when the interpreter exits
    except stopping.StoppedError as stopped:
        _end(stopped.number, kept=True)
    except ForgettingError as error:
        first, *more = str(error).splitlines() or [""]
        say(f"error: {first}")
        for line in more:
            say(line)
        if isinstance(error, WriteError):
            leave_stdout()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        leave_stdout()  # the reader of our output (head, less) has closed it on purpose
        sys.exit(1)
    except BaseException as error:
        if _leaving is not None and isinstance(error, Exception):
            sys.exit(128 + _leaving)  # a library turned our exit into an error, as numpy does while it is imported
        if (why := _outside(error)) is None:
            raise
        say(f"error: {why}")
        sys.exit(1)
    sys.exit(0)


def _outside(error: BaseException) -> str | None:
    """What this machine or a library did to end the work, in words; None for a defect of our own."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return None
    named = getattr(error, "filename", None)
    where = f"{named}: " if named else ""
    if no_room(error):
        return f"{where}the disk is full; free some space, then run the same command again"
    if no_memory(error):
        return "out of memory; everything measured so far is kept (a smaller batch or context needs less memory)"
    if isinstance(error, RecursionError):
        return "values are nested too deeply"
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return f"{where}{error.strerror or error}"
    if type(error).__name__ == "PanicException":  # from a Rust library; not a subclass of Exception
        return f"a library failed: {error}"
    return None


def _stop(number: int, _frame: FrameType | None) -> None:
    """Ask running runs to stop at their next step; exit at once if none is running, or at a second signal."""
    if stopping.waits() and stopping.requested() is None:
        stopping.request(number)
        sys.stderr.write(
            "stopping: each run finishes its step and writes a checkpoint; press Ctrl-C again to stop at once\n"
        )
        return
    signal.signal(number, signal.SIG_DFL)
    _end(number, kept=stopping.waits())


def _end(number: int, *, kept: bool) -> NoReturn:
    """Exit with the shell's exit code for a signal.

    Args:
        number: the signal's number.
        kept: runs of a study were running; their measurements are on the disk.
    """
    global _leaving
    _leaving = number
    more = "; everything measured so far is kept; run the same command again to resume" if kept else ""
    sys.stderr.write(f"stopped{more}\n")
    sys.exit(128 + number)

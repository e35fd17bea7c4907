"""`forgetting card`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from . import options as o
from .measure import MeasureOptions, Text, TextField, texts_of
from .printing import quiet_libraries, say_notices


@o.expanded
def card_command(
    folder: Annotated[Path, typer.Argument(help="The folder of a model or adapter, whose README.md is its card.")],
    result: Annotated[
        Path | None, typer.Argument(help="What `measure`, `check` or `chain` printed with --json, in a file.")
    ] = None,
    *,
    base: Annotated[
        str | None, typer.Option(help="Without RESULT: measure the folder's model against this base model.")
    ] = None,
    text: Text = None,
    text_field: TextField = None,
    dataset: Annotated[
        str | None, typer.Option(help="The Hub data set to list the result under. Default: the text, where it is one.")
    ] = None,
    task: Annotated[str, typer.Option(help="The task of that data set.")] = "forgetting",
    measuring: MeasureOptions,
    models: o.ModelOptions,
    as_json: o.AsJson = False,
) -> None:
    """Write a measurement or a chain into a model card: a section, `model-index`, and .eval_results for the Hub.

    The section stands between marks in README.md and is replaced when the command is run again. A result of other
    weights than those in the folder is refused, by their SHA-256.
    """
    from ..reporting.card import read_result, write_card

    if (result is None) == (base is None):
        raise UsageError("RESULT, --base: give one of them: a result in a file, or the base model to measure against")
    if result is not None:
        if text or text_field:
            raise UsageError("--text: goes with --base, which measures; RESULT was measured already")
        row, where = read_result(result), str(result)
    else:
        row, where = _measured(str(base), folder, text, text_field, measuring.given(models)), "the measurement"
    written = write_card(folder, row, where, dataset=dataset, task=task)
    files = [str(path) for path in written.files]
    typer.echo(json.dumps({"files": files, "notices": list(written.notices)}) if as_json else "\n".join(files))
    say_notices(written.notices)


def _measured(
    base: str, folder: Path, text: list[str] | None, fields: list[str] | None, how: dict[str, Any]
) -> dict[str, Any]:
    """What `measure` gives of the folder's model."""
    source = texts_of(text, fields)
    quiet_libraries()
    from ..measuring.measure import measure, profile

    if isinstance(source, dict):
        return profile(base, str(folder), texts=source, **how).to_dict()
    return measure(base, str(folder), text=source, **how).to_dict()

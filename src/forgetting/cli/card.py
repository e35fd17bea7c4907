"""`forgetting card`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from . import options as o
from .measure import MeasureOptions
from .printing import quiet_libraries, say_notices
from .texts import Text, TextField, texts_of


@o.expanded
def card_command(
    folder: Annotated[Path, typer.Argument(help="The folder of a model or adapter; its README.md is the card.")],
    result: Annotated[
        Path | None, typer.Argument(help="A file with the --json output of `measure`, `check` or `chain`.")
    ] = None,
    *,
    base: Annotated[
        str | None, typer.Option(help="Measure the folder's model against this base model, instead of giving RESULT.")
    ] = None,
    text: Text = None,
    text_field: TextField = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="The Hub data set to list the result under. Default: the text, if it is a Hub data set."),
    ] = None,
    task: Annotated[str, typer.Option(help="The task name to list the result under.")] = "forgetting",
    measuring: MeasureOptions,
    models: o.ModelOptions,
    as_json: o.AsJson = False,
) -> None:
    """Write a measurement or a chain into a model card: a section, `model-index`, and .eval_results for the Hub.

    The section is enclosed in markers in README.md, so running the command again replaces it. A result is refused if
    it was measured on other weights than those in the folder; their SHA-256 tells.
    """
    from ..reporting.card import read_result, write_card

    if (result is None) == (base is None):
        raise UsageError("give either RESULT (a file with a result) or --base (the base model to measure against)")
    if result is not None:
        if how := [*o.words("--text", text), *o.words("--text-field", text_field), *o.words_of(measuring, models)]:
            raise UsageError(f"{how[0]}: only with --base; RESULT is already measured")
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
    """The result of `measure` for the folder's model."""
    source = texts_of(text, fields)
    quiet_libraries()
    from ..measuring.measure import measure, profile

    if isinstance(source, dict):
        return profile(base, str(folder), texts=source, **how).to_dict()
    return measure(base, str(folder), text=source, **how).to_dict()

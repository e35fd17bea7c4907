"""`forgetting scale`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..display.tables import Shown
from ..errors import UsageError
from . import options as o
from .measure import Base, Html, PassOptions
from .printing import print_shown, quiet_libraries, say, say_notices
from .summaries import Confidence, write
from .texts import TextField, one_text

if TYPE_CHECKING:
    from ..measuring.scaling import Scaling


Adapter = Annotated[str, typer.Argument(help="A finished adapter: LoRA, LoHa, LoKr or (IA)³.")]
Budget = Annotated[
    float | None, typer.Option(help="Excess forgetting allowed, nats/token: find the largest scale within it.")
]
Train = Annotated[
    str | None,
    typer.Option(metavar="SOURCE", help="Held-out text of the task, to see what a smaller scale costs there."),
]
TrainField = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="How to read --train, as --text-field.")
]
Folder = Annotated[
    Path | None, typer.Option("--write", help="Write the adapter at the scale found to this new folder.")
]
Text = Annotated[
    str | None,
    typer.Option(metavar="SOURCE", help="General text, as for `measure`: a {files} file, a folder, or a Hub id."),
]


@o.expanded
def scale_command(
    base: Base,
    adapter: Adapter,
    *,
    budget: Budget = None,
    confidence: Confidence = 0.95,
    train: Train = None,
    train_field: TrainField = None,
    folder: Folder = None,
    text: Text = None,
    text_field: TextField = None,
    measuring: PassOptions,
    models: o.ModelOptions,
    html: Html = None,
    as_json: o.AsJson = False,
) -> None:
    """Measure a finished adapter at several strengths, without training, and find the one that meets a budget.

    Scale 0 is the base model; scale 1 is the adapter unchanged. With --budget it searches for the largest scale whose
    upper confidence bound is within the budget. Exit code 3 if only scale 0 is.
    """
    if folder is not None:
        if budget is None:
            raise UsageError("--write: needs --budget, to find the scale")
        from ..models.scaled_adapter import check_free

        check_free(folder)
    task = one_text(train, train_field, "--train", "--train-field")
    general = one_text(text, text_field)
    quiet_libraries()
    from ..measuring.scale import scale

    found = scale(
        base,
        adapter,
        budget=budget,
        confidence=confidence,
        text=general,
        train=task,
        **measuring.given(models),
    )
    if html is not None:
        from ..reporting.scaling import render

        write(html, render(found))
    raise typer.Exit(_told(found, folder, as_json))


def _told(found: Scaling, folder: Path | None, as_json: bool) -> int:
    """Write and print the result; returns the exit code."""
    met = found.chosen is None or found.chosen.scale > 0
    written = folder if folder is not None and met else None
    if written is not None:
        found.write(written)
    if as_json:
        typer.echo(json.dumps({**found.to_dict(), "written": None if written is None else str(written)}))
    else:
        more = [] if written is None else [Shown([f"written: {written}; `forgetting measure` gives the same numbers"])]
        print_shown([*replace(found, notices=()).shown(), *more])
    say_notices(found.notices)
    if not met and folder is not None:
        say("nothing was written: only scale 0, the base model, is within the budget")
    return 0 if met else 3

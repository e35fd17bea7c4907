"""`forgetting compare`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from . import options as o


def compare_command(
    source: Annotated[str, typer.Argument(help="A study folder, a table, or PEFT results (a file or a folder).")],
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="What all others are held against: a label's plain runs, or COLUMN=VALUE; repeat for several. "
            "Default: a study's first method."
        ),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Only this data set.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="COLUMN=VALUE: compare only these rows; repeat for more values.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Column to hold equal. Default: finetune_loss; of PEFT results test_accuracy.")
    ] = None,
    direction: Annotated[
        str | None, typer.Option(help="lower or higher: which is better, for a --by column of your own.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Nominal coverage of each interval.")] = 0.95,
    as_json: o.AsJson = False,
) -> None:
    """Compare methods and mitigations at equal fine-tuning loss: off the trade-off line, or only back along it?"""
    from ..analysis.api import compare

    made = compare(
        source,
        reference,
        dataset=dataset,
        only=o.several(only, "--only"),
        by=by,
        direction=direction,
        confidence=confidence,
    )
    typer.echo(json.dumps(made.to_dict(), indent=1) if as_json else str(made))

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
            help="The reference that all others are compared with: a label's plain runs, or COLUMN=VALUE. Repeat for "
            "several. Default: a study's first method."
        ),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Compare only runs on this data set.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="COLUMN=VALUE: compare only these rows. Repeat for more values.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Compare runs at equal values of this column. Default: finetune_loss; for PEFT results test_accuracy."
        ),
    ] = None,
    direction: Annotated[
        str | None, typer.Option(help="Which is better, lower or higher; for your own --by column.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Nominal coverage of each interval. Default: 0.95.")] = 0.95,
    as_json: o.AsJson = False,
) -> None:
    """Compare methods and mitigations at equal fine-tuning loss: do they forget less, or only learn less?"""
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

"""`forgetting measure` with several checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..display.commands import command
from ..display.markdown import as_markdown
from ..display.numbers import few
from ..display.tables import Shown
from ..errors import ForgettingError, UsageError
from .printing import print_shown, say_notices
from .summaries import say_page, write

if TYPE_CHECKING:
    from ..measuring.checkpoint_curve import CheckpointCurve


@dataclass(frozen=True)
class Output:
    """Where the curve goes.

    Attributes:
        html, markdown: files to write; None writes none.
        as_json: print JSON.
        words: options of the text and the models, for the next command.
    """

    html: Path | None
    markdown: Path | None
    as_json: bool
    words: list[str]


def curve_of(base: str, tuned: list[str], source: Any, how: dict[str, Any], output: Output) -> None:
    """Measure checkpoints, and write and print the curve; if one cannot be measured, the curve of those before it.

    Args:
        base: the base model.
        tuned: checkpoints, or folders of them.
        source: the text, or a mapping with one text if it has a name or is a probe.
        how: the arguments of `measure`.
        output: where it goes.

    Raises:
        UsageError: several texts, or a tolerance; what `measure_checkpoints` raises.
    """
    if how.pop("tolerance") is not None:
        raise UsageError(
            "--tolerance: several checkpoints are measured on the whole text, so that they can be compared token by "
            "token; leave it out"
        )
    if isinstance(source, dict) and len(source) > 1:
        raise UsageError(f"several checkpoints are measured on one text; got {few(source)}; give one of them")
    text = next(iter(source.values())) if isinstance(source, dict) else source
    from ..measuring.checkpoints import measure_checkpoints

    so_far: list[CheckpointCurve] = []
    try:
        measure_checkpoints(base, tuned, text=text, each=so_far.append, **how)
    except (ForgettingError, KeyboardInterrupt):
        if so_far:
            _told(so_far[-1], output)
        raise
    _told(so_far[-1], output)


def _told(curve: CheckpointCurve, output: Output) -> None:
    if output.html is not None:
        from ..reporting.checkpoints import render

        write(output.html, render(curve))
    if output.markdown is not None:
        write(output.markdown, as_markdown(curve.shown()))
    if output.as_json:
        typer.echo(json.dumps(curve.to_dict()))
    else:
        last = curve.rows[-1].measurement
        where = command("measure", last.base, last.tuned, *output.words, "--html", "page.html")
        parts = [replace(part, notes=()) for part in curve.shown()]
        print_shown([*parts, Shown([curve.sentence(), f"to see where the last one forgot: {where}"])])
    say_page(output.html, as_json=output.as_json)
    say_notices(curve.notices)

"""`forgetting doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import visible
from . import options as o


def doctor_command(
    folder: Annotated[
        Path,
        typer.Argument(help="Where studies are stored, to try its disk; of a study or its YAML file, its memory, too."),
    ] = Path(),
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster to reach: HOST:PORT, or auto for the one of this machine.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Say what works on this machine, and what to do about what does not; exit code 1 if something is broken.

    Tokens are reported as there or not; they are never shown.
    """
    from .environment import as_lines, as_rows, doctor

    checks = doctor(folder, ray_address=ray_address)
    broken = any(check.state == "broken" for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": not broken, "checks": as_rows(checks)}, indent=1))
    else:
        typer.echo("\n".join(map(visible, as_lines(checks))))
    if broken:
        raise typer.Exit(1)

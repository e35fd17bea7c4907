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
        typer.Argument(
            help="Folder for studies, to test its disk. A study or its YAML file: also estimate the memory of its runs."
        ),
    ] = Path(),
    ray_address: Annotated[
        str | None, typer.Option(help="Also check a Ray cluster: HOST:PORT, or auto for this machine's.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Check what works on this machine, and say how to fix what does not; exit code 1 if something is broken.

    Tokens are reported as set or not set; they are never shown.
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

"""`forgetting doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from . import options as o

MARKS = {"works": "ok    ", "note": "note  ", "broken": "BROKEN"}


def doctor_command(
    folder: Annotated[Path, typer.Argument(help="Where studies are stored, to try its disk.")] = Path(),
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster to reach: HOST:PORT, or auto for the one of this machine.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Say what works on this machine, and what to do about what does not; exit code 1 if something is broken.

    Tokens are reported as there or not; they are never shown.
    """
    from .environment import as_rows, doctor

    checks = doctor(folder, ray_address=ray_address)
    broken = [check.name for check in checks if check.state == "broken"]
    if as_json:
        typer.echo(json.dumps({"ok": not broken, "checks": as_rows(checks)}, indent=1))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            advice = f" -> {check.advice}" if check.advice else ""
            typer.echo(f"{MARKS[check.state]} {check.name:{width}}  {check.found}{advice}")
        typer.echo(f"broken: {', '.join(broken)}" if broken else "nothing is broken: studies can run here")
    if broken:
        raise typer.Exit(1)

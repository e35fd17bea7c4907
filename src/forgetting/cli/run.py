"""`forgetting run`: one run of a stored study, for any scheduler to call."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from ..errors import ForgettingError, UsageError, did_you_mean
from . import options as o

SHOWN = 10
"""Run ids named in an error."""


def run_command(
    study: o.Study,
    run_id: Annotated[str, typer.Argument(help="Which run; `forgetting study ... --prepare` lists them.")],
    as_json: o.AsJson = False,
) -> None:
    """Do one run of a stored study in this process, or what is left of it; schedulers such as SLURM can call this.

    A run that was cut goes on from its last checkpoint; one that is done or diverged stays as it is. A run that
    another process holds is refused. Write the report afterwards with `forgetting report STUDY`.
    """
    from .. import stopping
    from ..runs import do_run, runs_by_id
    from ..store import StudyFolder

    folder = StudyFolder.open(study)
    runs = runs_by_id(folder.config().to_yaml())
    if run_id not in runs:
        close = [name for name in runs if name.startswith(run_id.rsplit("-", 1)[0])] or list(runs)
        raise UsageError(f"{study}: no run '{run_id}' in this study; {did_you_mean(run_id, close[:SHOWN])}")
    began = time.perf_counter()
    with stopping.at_next_step():
        worked = do_run(folder, run_id, lambda _: None)
    state, rows = folder.run(run_id).read(), folder.run(run_id).measurements()
    seconds = round(time.perf_counter() - began, 1)
    if as_json:
        shown = {"run_id": run_id, "worked": worked, "seconds": seconds, "status": state["status"]}
        typer.echo(json.dumps({**shown, "why": state.get("why"), "measured_steps": len(rows)}, indent=1))
    elif state["status"] == "done":
        how = f"done in {seconds} s" if worked else "done before"
        typer.echo(f"{run_id}: {how}, {len(rows)} measurements")
    if state["status"] != "done":
        raise ForgettingError(f"run {run_id} failed: {state.get('why')}")

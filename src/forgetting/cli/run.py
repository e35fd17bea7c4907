"""`forgetting run`: execute one run of a stored study; any scheduler can call it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from ..display.numbers import several
from ..errors import ForgettingError, UsageError, did_you_mean
from . import options as o

if TYPE_CHECKING:
    from ..store.folder import StudyFolder
    from ..studies.engines import Accelerate
    from ..studies.inputs import StudyInputs

SHOWN = 10
"""How many run ids an error names."""


def run_command(
    study: o.Study,
    run_id: Annotated[str, typer.Argument(help="The run's id; `forgetting study ... --prepare` lists them.")],
    accelerate_config: o.AccelerateConfig = None,
    machine_rank: o.MachineRank = None,
    as_json: o.AsJson = False,
) -> None:
    """Execute one run of a stored study, or the rest of it, in this process; schedulers such as SLURM can call this.

    With --accelerate-config, it starts several processes that execute the run together, on this machine or several.

    An interrupted run resumes from its last checkpoint; a run that is done or diverged is left unchanged. A run that
    another process holds is refused. Write the report afterwards with `forgetting report STUDY`.
    """
    from ..store.folder import StudyFolder
    from ..studies import launching
    from ..studies.engines.accelerate import read_engine
    from ..studies.execute import Worker
    from ..studies.inputs import StudyInputs
    from ..tuning import stopping

    folder = StudyFolder.open(study)
    inputs = StudyInputs(folder.config())
    runs = inputs.runs
    if run_id not in runs:
        close = [name for name in runs if name.startswith(run_id.rsplit("-", 1)[0])] or list(runs)
        raise UsageError(f"{study}: this study has no run '{run_id}'; {did_you_mean(run_id, close[:SHOWN])}")
    if accelerate_config is None and machine_rank is not None:
        raise UsageError("--machine-rank: needs --accelerate-config with num_machines above 1")
    engine = None if accelerate_config is None else read_engine(accelerate_config, machine_rank)
    launching.check(folder.config(), study, None if engine is None else engine.launch, run_id)
    began = time.perf_counter()
    with stopping.at_next_step():
        worked = (
            Worker(folder.path, inputs).do(run_id, lambda _: None)
            if engine is None
            else _do_together(engine, folder, inputs, run_id)
        )
    state, rows = folder.run(run_id).read(), folder.run(run_id).measurements()
    damage = folder.run(run_id).damage() if state["status"] == "done" else ""
    seconds = round(time.perf_counter() - began, 1)
    status, why = ("damaged", damage) if damage else (state["status"], state.get("why"))
    if as_json:
        shown = {"run_id": run_id, "worked": worked, "seconds": seconds, "status": status, "why": why}
        typer.echo(json.dumps({**shown, "measured_steps": len(rows)}, indent=1))
    elif status == "done":
        how = f"done in {seconds} s" if worked else "done before"
        typer.echo(f"{run_id}: {how}, {several(len(rows), 'measurement')}")
    if status != "done":
        raise ForgettingError(f"run {run_id} {'is damaged' if damage else 'failed'}: {why}")


def _do_together(engine: Accelerate, folder: StudyFolder, inputs: StudyInputs, run_id: str) -> bool:
    """`do_run` with the processes of an engine."""
    from ..studies.execute import Worker, is_pending
    from ..studies.study import follow, keep_lost

    if engine.launch.machine:
        follow(folder.path, engine)
        return True
    tasks = [run_id] if is_pending(folder.run(run_id).read()) else []  # may be empty: other machines wait for a signal
    with engine.ready():
        lost = engine.execute(tasks, Worker(folder.path.resolve()), lambda _: None, one_thread=False)
        keep_lost(folder, inputs.runs, lost)
    return bool(tasks)

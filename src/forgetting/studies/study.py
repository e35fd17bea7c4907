"""Runs a study: a grid of runs on one model and one general text. Skips finished runs and resumes interrupted ones."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.schema import RunConfig, StudyConfig
from ..errors import ForgettingError, UsageError
from ..models import processes
from ..store.columns import DAMAGED
from ..store.folder import HeldError, StudyFolder
from ..tuning import stopping
from ..tuning.grid import costliest_first
from ..tuning.methods import check_methods, rank_notices
from ..tuning.mitigations import check_runs
from . import growing, launching, memory_plan, own_code, provenance, tracking
from .engines import Accelerate, Engine, Event, Hear, Local, Ray
from .execute import Worker, changes, is_pending, is_small, limit_threads, quiet_libraries
from .inputs import StudyInputs
from .memory_plan import MemoryPlan, Places

if TYPE_CHECKING:
    import pandas as pd

    from ..models.loading import Base

log = logging.getLogger(__name__)
LOOK_AGAIN = 1.0
"""Seconds between checks of runs that other processes hold."""


@dataclass(frozen=True)
class StudyRuns:
    """The outcome of running a study.

    Attributes:
        folder: the study folder.
        table: one row per measurement.
        failed: run id -> reason, for runs that failed.
        skipped: ids of runs that this call did not execute: finished, diverged or damaged before, or not in `only`.
        seconds: wall time of this call's runs.
    """

    folder: StudyFolder
    table: pd.DataFrame
    failed: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0


def prepare(
    config: StudyConfig, out: Path, engine: Engine, *, on_memory: Callable[[MemoryPlan], None] | None = None
) -> list[str]:
    """Check that a study can run, create its folder, and compute what its runs share.

    Args:
        config: the whole study.
        out: the study folder; created, resumed, or grown if it holds a study that can become this one.
        engine: where the runs will be executed.
        on_memory: called with the memory plan of the runs, if it could be made.

    Returns:
        Ids of the runs to do, costliest first.

    Raises:
        UsageError: the configuration, text or model is wrong, or changed since the first run; or a run does not fit
            the memory.
    """
    with engine.ready():
        found = _prepare(StudyInputs(config), out, engine, plan=on_memory is not None).memory
    if on_memory is not None and found is not None:
        on_memory(found)
    return left(out)


def left(out: Path) -> list[str]:
    """Ids of the pending runs of a stored study, costliest first.

    Raises:
        UsageError: not a study folder.
    """
    folder = StudyFolder.open(out)
    return _pending(folder, StudyInputs(folder.config()))


def _pending(folder: StudyFolder, inputs: StudyInputs) -> list[str]:
    return [run_id for run_id in costliest_first(inputs.runs) if is_pending(folder.run(run_id).state())]


def study(
    config: StudyConfig,
    out: Path,
    *,
    engine: Engine | None = None,
    on_event: Hear | None = None,
    on_plan: Callable[[list[RunConfig], list[str]], None] | None = None,
    only: Collection[str] | None = None,
) -> StudyRuns:
    """Run a study, or the rest of it, in its folder. Several processes may call this at once and share the runs.

    Args:
        config: the whole study.
        out: the study folder; created, resumed, or grown if it holds a study that can become this one.
        engine: where runs are executed; default `Local()`.
        on_event: called with every event, such as a finished step.
        on_plan: called once with all runs and the ids of those still to do.
        only: ids of the runs to do; the others stay pending, and it is no error if all runs fail. None: all.

    Returns:
        The table of all measurements, and the failed runs. A run that failed is tried again by the next call, unless
        it diverged.

    Raises:
        UsageError: the configuration, text or model is wrong, or changed; or a run does not fit the memory. Nothing
            was started.
        StoppedError: a stop was requested.
        ForgettingError: every run failed, or the disk is full.
    """
    engine, hear = engine or Local(), on_event or _ignore
    _refuse_follower(engine)
    inputs = StudyInputs(config)
    runs = list(inputs.runs.values())
    before = _check_folder(inputs, out)
    with engine.ready():
        one_thread = _prepare(inputs, out, engine, plan=False).one_thread
        folder = StudyFolder(out)
        folder.check_there()
        if before is not None and not before.is_same(config) and only is None:
            log.warning("%s", growing.sentence(before, config))
        pending = [run_id for run_id in _pending(folder, inputs) if only is None or run_id in only]
        if on_plan:
            on_plan(runs, pending)
        began = time.perf_counter()
        with stopping.at_next_step(), folder.in_place():
            _do_all(folder, inputs, pending, engine, hear, one_thread)
    own_code.check_same()
    from ..analysis.study_table import load_study  # takes a second to import, which preparation and workers save

    states = {run_id: folder.run(run_id).state() for run_id in inputs.runs}
    failed = {run_id: str(state.get("why")) for run_id, state in states.items() if state.get("status") == "failed"}
    if len(failed) == len(runs) and only is None:
        raise ForgettingError("every run failed; the first: " + next(f"{i}: {why}" for i, why in failed.items()))
    todo = set(pending)
    skipped = tuple(run_id for run_id in states if run_id not in todo)
    return StudyRuns(folder, load_study(out), failed, skipped, time.perf_counter() - began)


@dataclass(frozen=True)
class Prepared:
    """Results of preparing a study.

    Attributes:
        one_thread: whether one CPU thread per run is best.
        memory: the memory plan; None if everything surely fits, or if it could not be made.
    """

    one_thread: bool
    memory: MemoryPlan | None


def _prepare(inputs: StudyInputs, out: Path, engine: Engine, *, plan: bool) -> Prepared:
    """Prepare a study where the engine's runs will be executed; with `plan`, always make the memory plan."""
    launch = engine.launch if isinstance(engine, Accelerate | Ray) else None
    places = memory_plan.places_of(engine)
    return engine.call(functools.partial(_prepare_here, inputs, out.resolve(), launch, places, plan))


def _prepare_here(
    inputs: StudyInputs, out: Path, launch: processes.Launch | None, places: Places, plan: bool
) -> Prepared:
    """Prepare a study in this process, which must be able to execute a run; without a launch, a run has one process."""
    config, runs = inputs.config, list(inputs.runs.values())
    quiet_libraries()
    _check_folder(inputs, out)
    tracking.check(config)
    launching.check(config, out, launch)
    inputs.check_context()
    inputs.read_texts()
    inputs.check_apart()
    for name in config.datasets:
        inputs.dataset(name)
    inputs.text  # noqa: B018  # read before the model, so that a wrong file is named at once
    longest = {name: int(inputs.dataset(name)[0].lengths.max(initial=1)) for name in config.datasets}
    planned = memory_plan.look_ahead(config, runs, inputs.source, places, longest, always=plan)
    sharded = launch is not None and launch.sharding is not None
    base = inputs.base(host=sharded)
    for notice in (*base.notices, *rank_notices(runs, base.model), *(planned.warnings() if planned else ())):
        log.warning("%s", notice)
    if is_small(base):
        limit_threads()
    if launch is not None:
        launching.check_model(base)
    check_methods(runs, base.model, inputs.context)
    check_runs(runs, base, inputs.general, inputs.context)
    _check_unchanged(inputs, StudyFolder(out), base)
    folder = StudyFolder.create_or_resume(out, config)
    if not sharded:  # if sharded, the processes of the first run compute them together
        inputs.targets(base, folder.path)
    if config.capabilities is not None:
        reference = inputs.reference() if config.model.reference == "full" else base
        growing.ask(folder, config, reference, base, inputs.runs)
    return Prepared(is_small(base), planned)


def _check_folder(inputs: StudyInputs, out: Path) -> StudyConfig | None:
    """Refuse a folder that cannot hold this study; returns the configuration stored there, or None."""
    folder = StudyFolder(out)
    folder.check(inputs.config)
    if not folder.config_file.exists():
        return None
    growing.check(folder, inputs.config, inputs.runs)
    return folder.config()


def _check_unchanged(inputs: StudyInputs, folder: StudyFolder, base: Base) -> None:
    """Refuse to continue if the model or a text changed since the first run: a study has only one of each."""
    seen: set[str] = set()
    for run_id, run in inputs.runs.items():
        if run.dataset_name in seen:
            continue
        state = _begun(folder, run_id, run)
        if not state.get("data"):
            continue
        seen.add(run.dataset_name)
        if changed := changes(state, inputs.fingerprints(run.dataset_name, base, folder.path)):
            raise UsageError(
                f"{folder.path}: {changed} since run {state.get('run_id', run_id)} started; restore the old "
                "state, or choose another folder with out (--out)"
            )


def _begun(folder: StudyFolder, run_id: str, run: RunConfig) -> dict[str, Any]:
    """The record of a run, or of the shorter run that it would continue."""
    state = folder.run(run_id).state()
    if state or not folder.config_file.exists():
        return state
    return next((one.state() for one in growing.shorter(folder, run)), state)


def _do_all(
    folder: StudyFolder, inputs: StudyInputs, pending: list[str], engine: Engine, hear: Hear, one_thread: bool
) -> None:
    """Execute runs until none is left, including runs that another process held and left unfinished."""
    work = Worker(folder.path.resolve(), inputs)
    todo = waiting = pending
    if not todo and isinstance(engine, Accelerate):  # tells the other machines that there is nothing to do
        engine.execute([], work, hear, one_thread=one_thread)
    while todo:
        lost = engine.execute(todo, work, hear, one_thread=one_thread)
        keep_lost(folder, inputs.runs, lost)
        waiting = [run_id for run_id in waiting if _is_unfinished(folder, run_id)]
        todo = _freed(folder, waiting, hear)


def keep_lost(folder: StudyFolder, runs: dict[str, RunConfig], lost: dict[str, str]) -> None:
    """Record runs that an engine gave up as failed; `lost` has the reason by run id.

    Leaves out runs that another process executes or has finished meanwhile.
    """
    for run_id, why in lost.items():
        run = folder.run(run_id)
        with suppress(HeldError), run.lock():
            if is_pending(run.state()):
                run.update(**provenance.record(run_id, runs[run_id]), status="failed", kind="error", why=why)


def _is_unfinished(folder: StudyFolder, run_id: str) -> bool:
    return folder.run(run_id).state().get("status") not in ("done", "failed", DAMAGED)


def _freed(folder: StudyFolder, held: list[str], hear: Hear) -> list[str]:
    """Wait while other processes hold these runs; returns the ids of runs that they left unfinished."""
    told: dict[str, str] = {}
    while held:
        stopping.check()
        holders = {run_id: folder.run(run_id).held_by() for run_id in held}
        free = [run_id for run_id, who in holders.items() if who is None and _is_unfinished(folder, run_id)]
        if free:
            return free
        held = [run_id for run_id, who in holders.items() if who is not None]
        for run_id in held:
            who = str(holders[run_id])
            if told.get(run_id) != who:
                told[run_id] = who
                hear(Event(run_id, "held", note=who))
        if held:
            time.sleep(LOOK_AGAIN)
    return []


def follow(out: Path, engine: Accelerate) -> None:
    """Do this machine's part of a study, or of one run, that the command on the first machine controls.

    Args:
        out: the study folder, under the same path on all machines; it need not exist yet.
        engine: an engine whose launch has several machines, of which this is not the first.

    Raises:
        StoppedError: a stop was requested on any machine.
        ForgettingError: the first machine failed or is gone.
    """
    with engine.ready(), stopping.at_next_step():
        engine.follow(Worker(out.resolve()))


def _refuse_follower(engine: Engine) -> None:
    if isinstance(engine, Accelerate) and engine.launch.machine:
        raise UsageError(
            f"machine_rank {engine.launch.machine}: the first machine runs the study; on this one, call "
            "`forgetting.studies.study.follow(out, engine)`, or run the command"
        )


def _ignore(event: Event) -> None:
    """Do nothing."""

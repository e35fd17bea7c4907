"""A study: the grid of runs over one model and one general text. Skips what is stored, resumes what was cut, then
fits and reports. The only module that drives the rooms above it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.schema import RunConfig, StudyConfig
from ..errors import ForgettingError, UsageError
from ..models import processes
from ..store.folder import StudyFolder
from ..store.table import load_table
from ..tuning import stopping
from ..tuning.methods import check_methods
from ..tuning.mitigations import check_runs
from . import execute as room
from . import launching, provenance
from .engines import Accelerate, Engine, Event, Hear, Local
from .execute import expand_runs, is_pending

if TYPE_CHECKING:
    import pandas as pd

    from ..models.loading import Base

LOOK_AGAIN = 1.0
"""Seconds between looks at runs that other processes hold."""


@dataclass(frozen=True)
class StudyResult:
    """What a study gave.

    Attributes:
        folder: the study folder.
        table: one row a measurement.
        failed: run id -> why, for runs that failed.
        skipped: ids of runs that were finished before.
        seconds: wall time of this call's runs.
    """

    folder: StudyFolder
    table: pd.DataFrame
    failed: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0


def left(out: Path) -> list[str]:
    """Ids of the runs of a stored study that are still to do, costliest first.

    Raises:
        ForgettingError: a damaged run.json, or not a study folder (UsageError).
    """
    folder = StudyFolder.open(out)
    runs = room.runs_by_id(folder.config().to_yaml())
    return [run_id for run_id in _costliest_first(runs) if is_pending(folder.run(run_id))]


def study(
    config: StudyConfig,
    out: Path,
    *,
    engine: Engine | None = None,
    on_event: Hear | None = None,
    on_plan: Callable[[list[RunConfig], list[str]], None] | None = None,
) -> StudyResult:
    """Run a study, or what is left of it, in its folder. Several processes may do so at once and share the runs.

    Args:
        config: the whole study.
        out: the study folder; created, or resumed if it holds this very configuration.
        engine: where its runs run; None is `Local()`.
        on_event: told of every finished step.
        on_plan: told once of all runs and the ids of those still to do.

    Returns:
        The table of all measurements and what failed. Runs that diverged are not tried again; others that failed are.

    Raises:
        UsageError: the configuration, text or model are wrong, or changed; nothing was started.
        StoppedError: a stop was requested.
        ForgettingError: every run failed, or the disk is full.
    """
    engine, hear = engine or Local(), on_event or _ignore
    runs = expand_runs(config)
    StudyFolder(out).check(config)
    launch = engine.launch if isinstance(engine, Accelerate) else None
    with engine.ready():
        one_thread = engine.call(functools.partial(prepare, config, out.resolve(), launch))
        folder, pending = StudyFolder.open(out), left(out)
        if on_plan:
            on_plan(runs, pending)
        began = time.perf_counter()
        with stopping.at_next_step():
            _do_all(folder, pending, engine, hear, one_thread)
    ids = room.runs_by_id(config.to_yaml())
    states = {run_id: folder.run(run_id).read() for run_id in ids}
    failed = {run_id: str(state.get("why")) for run_id, state in states.items() if state.get("status") == "failed"}
    if len(failed) == len(runs):
        raise ForgettingError("every run failed; the first: " + next(f"{i}: {why}" for i, why in failed.items()))
    todo = set(pending)
    skipped = tuple(run_id for run_id in states if run_id not in todo)
    return StudyResult(folder, load_table(out), failed, skipped, time.perf_counter() - began)


def prepare(config: StudyConfig, out: Path, launch: processes.Launch | None = None) -> bool:
    """See that a study can run, make its folder, and compute once what its runs share.

    Args:
        config: the whole study.
        out: its folder.
        launch: how each run is spread over several processes; None is one process.

    Returns:
        Whether one CPU thread is enough for a run.

    Raises:
        UsageError: the configuration, text or model are wrong, or changed since its first run.
    """
    runs = expand_runs(config)
    room.quiet_libraries()
    StudyFolder(out).check(config)
    launching.check(config, out, launch)
    room.check_context(config)
    for name in config.datasets:
        room.windows(config.to_yaml(), name)
    room.text_windows(config.to_yaml())
    base = room.open_base(config)
    if room.is_small(base):
        room.limit_threads()
    if launch is not None:
        launching.check_model(base)
    check_methods(runs, base.model, functools.partial(room.context, config, base))
    check_runs(runs, base, functools.partial(room.context, config, base))
    _check_unchanged(config, StudyFolder(out), base)
    folder = StudyFolder.create_or_resume(out, config)
    room.targets(config, base, folder)
    if config.capabilities is not None:
        from ..capabilities.study_runs import ask_base, plan_of

        ask_base(folder.path, base, config.model, plan_of(config))
    return room.is_small(base)


def _check_unchanged(config: StudyConfig, folder: StudyFolder, base: Base) -> None:
    """Refuse to go on where the model or a text is another than in runs that have begun: one study, one of each."""
    seen: set[str] = set()
    for run_id, run in room.runs_by_id(config.to_yaml()).items():
        if run.dataset_name in seen:
            continue
        state = folder.run(run_id).read()
        if not state.get("data"):
            continue
        seen.add(run.dataset_name)
        if changed := room.changes(state, room.fingerprints(config, run.dataset_name, base)):
            raise UsageError(
                f"{folder.path}: {changed} since run {run_id} began; put back what was there, or name another "
                "folder with --out"
            )


def _do_all(folder: StudyFolder, pending: list[str], engine: Engine, hear: Hear, one_thread: bool) -> None:
    """Do runs until none is left, those too that another process held and left."""
    work = functools.partial(room.run_one, str(folder.path.resolve()))
    todo = pending
    while todo:
        lost = engine.execute(todo, work, hear, one_thread=one_thread)
        keep_lost(folder, lost)
        todo = _freed(folder, [run_id for run_id in todo if _is_unfinished(folder, run_id)], hear)


def keep_lost(folder: StudyFolder, lost: dict[str, str]) -> None:
    """Store runs that an engine gave up as failed, with the reason."""
    runs = room.runs_by_id(folder.config().to_yaml())
    for run_id, why in lost.items():
        folder.run(run_id).update(**provenance.record(runs[run_id]), status="failed", kind="error", why=why)


def _is_unfinished(folder: StudyFolder, run_id: str) -> bool:
    return folder.run(run_id).read().get("status") not in ("done", "failed")


def _freed(folder: StudyFolder, held: list[str], hear: Hear) -> list[str]:
    """Wait while other processes hold these runs; the ids of those that they left unfinished."""
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


def _costliest_first(runs: dict[str, RunConfig]) -> list[str]:
    """Large ranks first, so that no worker ends on one while the others stand idle; methods without a rank lead."""
    return sorted(runs, key=lambda run_id: -(runs[run_id].method.options.get("rank") or 10**9))


def _ignore(event: Event) -> None:
    """Nobody is told."""

"""The command that adds a planned run to the study that its law was fitted to."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

from forgetting.analysis.plan.result import NextRun
from forgetting.config.growing import with_more
from forgetting.config.schema import StudyConfig
from forgetting.display.commands import command
from forgetting.errors import UsageError
from forgetting.store.folder import StudyFolder
from forgetting.tuning.grid import runs_by_id
from forgetting.tuning.methods import default_rank


def with_commands(study: Path, candidates: Sequence[NextRun]) -> list[NextRun]:
    """Add to each candidate the command that adds it to a study, and the number of runs that the command executes.

    The number includes all combinations that a new rank, seed or length adds to the study's grid, and any pending runs.
    """
    folder = StudyFolder.open(study)
    config = folder.config()
    done = {run.id for run in folder.runs() if run.state().get("status") == "done"}
    return [_with_command(study, config, done, one) for one in candidates]


def _with_command(study: Path, config: StudyConfig, done: Container[str], run: NextRun) -> NextRun:
    """The candidate with its command; without one if its rank is unknown or the study cannot grow by it."""
    if run.rank is None or run.rank != int(run.rank):
        return run
    stored = runs_by_id(config)
    label = config.reference_label
    ranks = {
        one.method.options.get("rank") for one in stored.values() if (one.method.label or one.method.name) == label
    }
    rank, seed, steps = int(run.rank), max(config.seeds) + 1, math.ceil(run.steps)
    longer = steps > config.training.steps
    if longer and config.training.schedule != "constant":
        return run
    flags: dict[str, object] = {"seeds": [seed]} if rank in ranks else {}
    more = ["--seed", str(seed)] if rank in ranks else ["--rank", str(rank)]
    if longer:
        flags["training"] = {"steps": steps}
        more += ["--steps", str(steps)]
    try:
        grown = with_more(study, flags, default_rank=default_rank, ranks=None if rank in ranks else [rank])
        adds = sum(run_id not in done for run_id in runs_by_id(grown))
    except UsageError:
        return run
    return replace(run, command=command("study", study, *more), adds=adds, lengthens=longer)

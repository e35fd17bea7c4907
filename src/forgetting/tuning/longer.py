"""A longer run that continues a shorter one of the same study, in its own folder.

With a constant learning rate, the first steps of a longer run equal those of the shorter one: the order of the data,
the random states and the optimiser do not depend on the last step. So the longer run starts with the shorter one's rows
and last checkpoint, and every number equals that of a run planned for all steps.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..config.schema import RunConfig
from ..errors import ForgettingError
from ..files import write_atomically
from ..store import chain
from ..store.folder import RunFolder, StudyFolder
from . import checkpoints
from .mitigations import parse_together

KEPT = ("base", "data", "mitigated", "started", "versions", "hardware", "processes", "accelerate")
"""Fields that the longer run's record copies: what must stay the same, and where it was started."""


def of_steps(run: RunConfig, steps: int) -> RunConfig:
    """The same run with another number of steps."""
    return run.model_copy(update={"training": run.training.model_copy(update={"steps": steps})})


def shorter_runs(study: StudyFolder, run: RunConfig, steps: Iterable[int]) -> list[RunFolder]:
    """The stored runs that equal a run except for having fewer steps, longest first; none if it cannot continue any.

    Args:
        study: where they are.
        run: the longer one.
        steps: how many steps runs of this study have had at any time.
    """
    if run.training.schedule != "constant" or not all(one.lengthens() for one in parse_together(run)):
        return []
    fewer = sorted({number for number in steps if run.training.warmup_steps < number < run.training.steps})
    found = [study.run(of_steps(run, number).run_id()) for number in reversed(fewer)]
    return [one for one in found if (one.path / "run.json").exists()]


def refusal(run: RunConfig, old: RunFolder) -> str:
    """Why a run cannot continue a finished shorter one, in words; empty if it can."""
    for mitigation in parse_together(run):
        if not mitigation.lengthens():
            return f"the first steps of mitigation {mitigation.label()} depend on the number of steps"
    found = checkpoints.newest(old.path / "checkpoints")
    if found.path is None:
        return "it has no checkpoint (only those of adapters are kept, unless they were deleted)"
    return _wrong(_rows(old, found.step), found)


def _rows(old: RunFolder, step: int) -> list[dict[str, Any]]:
    """The rows up to a step."""
    return [row for row in old.measurements() if isinstance(row.get("step"), int) and row["step"] <= step]


def _wrong(rows: Sequence[Mapping[str, Any]], found: checkpoints.Found) -> str:
    head = chain.chain_of(rows)
    if (head.rows, head.head) != (found.state.get("rows"), found.state.get("chain")):
        return f"its rows up to the checkpoint at step {found.step} are lost or changed"
    return ""


def go_on(
    folder: RunFolder,
    record: Mapping[str, Any],
    grid: Sequence[int],
    shorter: Sequence[RunFolder],
    beside: Callable[[RunFolder, int], None],
) -> None:
    """Copy the rows and the last checkpoint of a shorter run into the folder of a longer one, which has none yet.

    The checkpoint's mark is written last, so if this is interrupted, it is simply repeated.

    Args:
        folder: folder of the longer run, which this process holds.
        record: the initial content of its run.json.
        grid: its measured steps.
        shorter: the runs that it may continue, best first.
        beside: called before the copy, with the run to continue and its step; copies what else belongs to that run.
    """
    if checkpoints.newest(folder.path / "checkpoints").path is not None:
        return
    for old in shorter:
        with old.lock():
            found = checkpoints.newest(old.path / "checkpoints")
            if found.path is None:
                continue
            try:
                rows = _rows(old, found.step)
            except ForgettingError:
                continue
            kept = [row for row in rows if row["step"] in grid and row.get("alpha") is None]
            whole = [row["step"] for row in kept] == [step for step in grid if step <= found.step]
            if _wrong(rows, found) or not whole:
                continue
            before = old.read()
            taken = {name: before[name] for name in KEPT if name in before}
            folder.update(**record, **taken, status="running", went_on={"run_id": old.id, "step": found.step})
            beside(old, found.step)
            _copy(folder, found.path, kept, found.state)
            return


def _copy(folder: RunFolder, checkpoint: Path, rows: Sequence[Mapping[str, Any]], state: Mapping[str, Any]) -> None:
    """Write the rows, then the checkpoint, then its mark."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(files.refuse_link(folder.path / "measurements.jsonl", folder.path), text, parents=False)
    target = files.refuse_link(folder.path / "checkpoints" / checkpoint.name, folder.path)
    files.refuse_links(checkpoint)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(checkpoint, target, ignore=shutil.ignore_patterns(checkpoints.MARK))
    head = chain.chain_of(rows)
    checkpoints.mark(target, **{**state, "rows": head.rows, "chain": head.head})

"""Repeats a stored run in a new folder and compares every number.

On the same hardware with the same versions, every number must be equal to the last digit. On other hardware or with
other versions, counts must be equal, and no mean may differ by more than its standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..errors import ForgettingError, UsageError
from ..store.columns import COSTS
from ..store.folder import RunFolder, StudyFolder
from ..tuning.grid import asked_by, runs_by_id
from .execute import do_run
from .inputs import StudyInputs


@dataclass(frozen=True)
class Repeat:
    """The outcome of repeating a run.

    Attributes:
        run_id: id of the run.
        folder: the new study folder with the repeated run.
        compared: how many numbers were compared.
        differences: the largest absolute difference by column; only columns with a difference.
        beyond: columns that differ by more than allowed.
        elsewhere: how hardware, versions and processes differ from the first time, in words; empty if they do not.
    """

    run_id: str
    folder: Path
    compared: int
    differences: dict[str, float]
    beyond: tuple[str, ...]
    elsewhere: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether all numbers agree as far as they must."""
        return not self.beyond

    def sentence(self) -> str:
        """The outcome in words."""
        where = f" ({'; '.join(self.elsewhere)})" if self.elsewhere else ""
        if not self.differences:
            return f"{self.run_id}: {self.compared} numbers, equal to the last digit{where}"
        column, size = max(self.differences.items(), key=lambda one: one[1])
        said = f"{self.run_id}: {self.compared} numbers; the largest difference is {size:.3g} in {column}"
        if self.elsewhere:
            verdict = "more than a standard error" if self.beyond else "no mean differs by more than its standard error"
        else:
            verdict = "with the same hardware and versions they should be equal"
        return f"{said}; {verdict}{where}"


def repeat(study: Path, run_id: str, tell: Callable[[int], None] = lambda _: None) -> Repeat:
    """Repeat a finished run in a new folder below the study's `repeats`, and compare the numbers.

    Args:
        study: the study folder.
        run_id: id of a finished run.
        tell: called with the number of each finished step.

    Raises:
        UsageError: no such run, the run is not done, or the configuration no longer contains it.
        ForgettingError: the text or model changed, or the repeated run failed.
    """
    first = StudyFolder.open(study)
    old = first.run(run_id)
    record = old.read()
    if record.get("status") != "done":
        came = f"is {record['status']}" if record else "has not started"
        done = [run.id for run in first.runs() if run.state().get("status") == "done"]
        raise UsageError(f"repeat (--repeat) {run_id}: this run {came}; finished runs: {', '.join(done[:5]) or 'none'}")
    place = files.refuse_link(study / "repeats" / run_id, study)
    number = 1 + max((int(path.name) for path in place.glob("*") if path.name.isdigit()), default=0)
    if not asked_by(runs_by_id(first.config()))(old):
        raise UsageError(f"--repeat {run_id}: the configuration no longer contains this run; restore study.yaml")
    # capabilities do not affect a run's numbers, and trackers already have the first run
    config = first.config().model_copy(update={"capabilities": None, "tracking": ()})
    again = StudyFolder.create_or_resume(files.refuse_link(place / str(number), study), config)
    new = again.run(run_id)
    do_run(again, StudyInputs(config), run_id, tell)
    now = new.read()
    if now.get("status") != "done":
        raise ForgettingError(f"{run_id}: failed when repeated: {now.get('why')}")
    changed = [part for part, digest in record.get("data", {}).items() if now["data"].get(part) != digest]
    if changed:
        raise ForgettingError(f"{run_id}: cannot be repeated: the {', '.join(changed)} changed since it was run")
    return compare(old, new, again.path)


def compare(old: RunFolder, new: RunFolder, folder: Path) -> Repeat:
    """Compare every number of two runs, except times and memory.

    Args:
        old, new: the run and its repetition.
        folder: the study folder of the repetition.
    """
    elsewhere = _elsewhere(old.read(), new.read())
    before, after = _numbers(old), _numbers(new)
    largest: dict[str, float] = {}
    beyond = set()
    for key in before.keys() | after.keys():
        column = key[2]
        one, two = before.get(key), after.get(key)
        if one == two:
            continue
        size = abs(one - two) if one is not None and two is not None else float("inf")
        largest[column] = max(largest.get(column, 0.0), size)
        allowed = before.get((*key[:2], f"{column}_se")) if elsewhere else None  # counts have no standard error
        if not (column.endswith("_se") and elsewhere) and not size <= (allowed or 0.0):
            beyond.add(column)
    return Repeat(old.id, folder, len(before), largest, tuple(sorted(beyond)), elsewhere)


def _numbers(run: RunFolder) -> dict[tuple[Any, Any, str], float | None]:
    """Values by step, alpha and column."""
    return {
        (row["step"], row.get("alpha"), column): value
        for row in run.measurements()
        for column, value in row.items()
        if column not in (*COSTS, "step", "alpha")
    }


def _elsewhere(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """How processes, hardware and versions differ between two run records, in words."""
    counts = [state.get("processes", 1) for state in (old, new)]
    said = [f"processes {counts[0]} then, {counts[1]} now"] if counts[0] != counts[1] else []
    for part in ("hardware", "versions"):
        one, two = old.get(part, {}), new.get(part, {})
        names = [name for name in {**one, **two} if name != "host" and one.get(name) != two.get(name)]
        said += [f"{name} {one.get(name)} then, {two.get(name)} now" for name in names]
    return tuple(said)

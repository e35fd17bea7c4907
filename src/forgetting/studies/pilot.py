"""A pilot finds a plan for a budget of forgetting from a few short runs, chosen one at a time.

Its folder is a study folder; the study grows by the run chosen next (`analysis.plan.sequential`). Two more files:

pilot.json  seconds used so far, why each run was chosen, and why the pilot ended
plan.yaml   the recommended run as a study of its own
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from ..analysis.plan.sequential import Answer, Asked, Next, State, Stop, decide, finished
from ..analysis.study_table import read_study
from ..config.arguments import checked
from ..config.files import study_config, with_flags
from ..config.schema import StudyConfig, validate
from ..errors import ForgettingError, UsageError
from ..files import write_atomically
from ..store.folder import StudyFolder
from ..tuning import stopping
from ..tuning.grid import runs_by_id
from . import pilot_note
from .conclude import conclude
from .engines import Event, Hear, Local
from .execute import is_pending
from .pilot_config import (
    as_stored,
    candidates,
    check,
    last_steps,
    method_of,
    miniature_flags,
    ranks_of,
    write_plan,
)
from .pilot_result import PilotResult, PilotRun, PilotStep
from .study import study

if TYPE_CHECKING:
    import pandas as pd

LATE = 1.1
"""The current run may exceed the time limit by this factor; after that it stops with a checkpoint."""
KEEP_EVERY = 5.0
"""Seconds between two writes of the time used."""
Choose = Callable[[PilotStep], None]
"""Called with each chosen run before it begins."""


@checked
def pilot(
    config: StudyConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    budget: float,
    minutes: float = 30.0,
    tolerance: float = 0.1,
    ranks: Sequence[int] | None = None,
    on_event: Hear | None = None,
    on_step: Choose | None = None,
) -> PilotResult:
    """Find the rank and steps that use up a budget of forgetting, from a few short runs.

    Each run is the one that is expected to narrow the plan's band most for its time.

    Args:
        config: what to fine-tune, as for `study`: one data set, a constant learning rate, and one method with a rank.
            Its steps are the most that a run may take. Default: the miniature.
        out: the study folder; default studies/NAME. An existing pilot is resumed; the time that it used counts.
        budget: allowed forgetting, in nats/token above the base model.
        minutes: time limit for all runs together.
        tolerance: the pilot ends when the half width of the band of forgetting at the recommended run is at most this
            share of the budget.
        ranks: candidate ranks, at least three; default those of the method, or 8, 16, 32 and 64.
        on_event: called with every event, such as a finished step.
        on_step: called with each chosen run before it begins.

    Returns:
        The recommended run with its bands, and the runs that it is based on.

    Raises:
        UsageError: the configuration, text or model is wrong, or the folder holds another study.
        StoppedError: a stop was requested; the same call resumes.
        ForgettingError: the disk is full, or a file in the folder is damaged.
    """
    own = with_flags(miniature_flags(), None, "miniature") if config is None else config
    whole, folder = study_config(own)
    if folder is not None:
        raise UsageError(f"{folder}: a study folder; give its configuration instead, and the folder with out (--out)")
    target = Path(out) if out is not None else Path("studies") / whole.name
    for name, value in (("budget", budget), ("minutes", minutes), ("tolerance", tolerance)):
        if not (np.isfinite(value) and value > 0):
            raise UsageError(f"{name}: got {value}; give a positive number")
    return _Session(whole, target, (budget, minutes, tolerance), ranks, on_event, on_step).run()


class _Once(logging.Filter):
    """Lets each log message through only once."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is new."""
        new = (said := record.getMessage()) not in self.said
        self.said.add(said)
        return new


class _Session:
    """One call of `pilot`."""

    def __init__(
        self,
        config: StudyConfig,
        out: Path,
        limits: tuple[float, float, float],
        ranks: Sequence[int] | None,
        on_event: Hear | None,
        on_step: Choose | None,
    ) -> None:
        self.out, self.on_event, self.on_step = out, on_event, on_step
        budget, minutes, tolerance = limits
        check(config)
        self.method, own = method_of(config)
        self.config = config
        self.begun = (out / "study.yaml").exists()
        most = config.training.steps
        if self.begun:
            stored = StudyFolder.open(out).config()
            self.config = as_stored(config, stored, self.method, out)
            most = max(most, stored.training.steps)
        self.asked = Asked(budget, tolerance, candidates(ranks, own), last_steps(config, most))
        self.seconds = minutes * 60
        self.note = pilot_note.read(out)
        self.began = time.monotonic() - float(self.note["seconds"])
        self.kept = 0.0
        self.late = False
        self.failed: dict[str, str] = {}
        self.lost: set[int] = set()
        self.extra: list[float] = []

    @property
    def spent(self) -> float:
        """Seconds used, including earlier calls."""
        return time.monotonic() - self.began

    def run(self) -> PilotResult:
        """Execute runs until the band is narrow enough or the time is up; equal notices of runs are shown once."""
        once = _Once()
        notices = logging.getLogger(study.__module__)
        notices.addFilter(once)
        try:
            return self._run()
        finally:
            notices.removeFilter(once)

    def _run(self) -> PilotResult:
        answer = None
        while True:
            if self.begun and not self._finish_begun():
                why = "the time was up before the current run ended; with more minutes (--minutes) it continues from"
                return self._result(Stop("time", f"{why} step {self._furthest()}"), answer)
            table = self._table()
            following, answer = decide(table, self.asked, self._state())
            if isinstance(following, Stop):
                return self._result(following, answer)
            if self.on_step is not None:
                done = 0 if not len(table) else len(finished(table).done)
                width = np.nan if answer is None else answer.half_width
                self.on_step(PilotStep(following, done, width, self.spent, self.seconds - self.spent))
            self._begin(following)

    def _state(self) -> State:
        """The state that the next decision depends on."""
        first = self.config.training.warmup_steps + 1
        overhead = float(np.mean(self.extra)) if self.extra else 0.0
        steps = self.config.training.steps if self.begun else first
        return State(steps, self.seconds - self.spent, overhead, frozenset(self.lost))

    def _table(self) -> pd.DataFrame:
        """The measurements so far.

        Raises:
            ForgettingError: a run is damaged, so that it is neither finished nor executed again.
        """
        import pandas as pd

        if not self.begun:
            return pd.DataFrame()
        found = read_study(self.out)
        if found.left.damaged:
            raise ForgettingError(*(f"{run_id}: damaged: {why}" for run_id, why in found.left.damaged.items()))
        return found.table

    def _begin(self, following: Next) -> None:
        """Add the chosen run, or more steps, to the study, and note the reason."""
        fields = self.config.model_dump(mode="json")
        fields["training"]["steps"] = following.steps
        if following.rank is not None:
            stored = ranks_of(self.config) if self.begun else []
            ranks = list(dict.fromkeys([*stored, following.rank]))
            seeds = [*self.config.seeds] if self.begun else []
            fields["methods"][0]["rank"] = ranks
            fields["seeds"] = list(dict.fromkeys([*seeds, following.seed]))
            self.note["chosen"].append({"rank": following.rank, "seed": following.seed, "why": following.why})
        self.config = validate(fields, where=str(self.out))
        self.begun = True
        self._keep()

    def _finish_begun(self) -> bool:
        """Execute the unfinished chosen runs; False if the time ran out."""
        chosen = {(one["rank"], one["seed"]) for one in self.note["chosen"]}
        chosen |= {_place(run.state().get("config") or {}) for run in self._folders()}
        for run_id, run in runs_by_id(self.config).items():
            rank = run.method.options["rank"]
            state = StudyFolder(self.out).run(run_id).state()
            if (rank, run.seed) in chosen and is_pending(state) and run_id not in self.failed and not self._do(run_id):
                return False
            state = StudyFolder(self.out).run(run_id).state()
            if state.get("status") == "failed":
                self.failed[run_id] = str(state.get("why"))
                self.lost.add(rank)
        return True

    def _folders(self) -> list[Any]:
        return list(StudyFolder(self.out).runs()) if (self.out / "study.yaml").exists() else []

    def _do(self, run_id: str) -> bool:
        """Execute one run; False if it was stopped because the time ran out."""
        began = time.monotonic()
        try:
            study(self.config, self.out, engine=Local(1), on_event=self._hear, only={run_id})
        except stopping.StoppedError:
            if not self.late:
                raise
            return False
        finally:
            self._keep()
        rows = StudyFolder(self.out).run(run_id).measurements()
        if rows:
            self.extra.append(max(0.0, time.monotonic() - began - _seconds(rows[-1])))
        return True

    def _hear(self, event: Event) -> None:
        """Note the time; stop the current run if it is far over the limit."""
        if self.spent - self.kept > KEEP_EVERY:
            self._keep()
        if self.spent > self.seconds * LATE and stopping.requested() is None:
            self.late = True
            stopping.request()
        if self.on_event is not None:
            self.on_event(event)

    def _keep(self) -> None:
        """Write the time and the choices to pilot.json, if the study folder exists."""
        self.kept = self.spent
        self.note["seconds"] = round(self.spent, 1)
        if (self.out / "study.yaml").exists():
            file = files.refuse_link(self.out / pilot_note.NOTE, self.out)
            write_atomically(file, json.dumps(self.note, indent=1) + "\n", parents=False)

    def _furthest(self) -> int:
        """The furthest measured step of the unfinished runs."""
        running = [run for run in self._folders() if run.state().get("status") == "running"]
        return max((row["step"] for run in running for row in run.measurements()), default=0)

    def _result(self, stop: Stop, answer: Answer | None) -> PilotResult:
        """The result; writes the study's report and the plan's configuration."""
        table = self._table()
        self.note["ended"] = stop.why
        self._keep()
        runs = self._runs(table)
        made = PilotResult(
            self.out,
            self.asked.budget,
            self.asked.tolerance,
            stop.reason,
            stop.why,
            plan=None if answer is None else answer.plan,
            runs=runs,
            failed=dict(self.failed),
            seconds=float(self.note["seconds"]),
            report=conclude(self.out).report if runs else None,
        )
        if answer is None:
            return made
        if not np.isfinite(answer.half_width):
            return replace(made, why=f"{stop.why}; {answer.fit.no_bands or 'the plan has no band'}")
        rank, steps = int(answer.choice.rank or 0), max(1, round(answer.choice.steps.value))
        return replace(
            made,
            rank=rank,
            steps=steps,
            forgetting=answer.forgetting,
            new_run=answer.new_run,
            half_width=answer.half_width,
            extrapolated=answer.choice.extrapolated,
            finetune_loss=answer.choice.finetune_loss,
            contradicted=answer.measured.sentences,
            places=answer.measured.places,
            command=write_plan(self.config, self.out, rank, steps),
        )

    def _runs(self, table: pd.DataFrame) -> tuple[PilotRun, ...]:
        """The finished runs at their last step, in the order in which they were chosen."""
        if not len(table):
            return ()
        why = {(one["rank"], one["seed"]): one["why"] for one in self.note["chosen"]}
        rows = table[table["status"] == "done"].sort_values("step", kind="stable")
        last = rows.groupby("run_id", sort=False).tail(1).to_dict("records")
        made = [
            PilotRun(
                row["run_id"],
                int(row["rank"]),
                int(row["seed"]),
                int(row["step"]),
                _seconds(row),
                float(row["forgetting"]),
                why.get((int(row["rank"]), int(row["seed"])), ""),
            )
            for row in last
        ]
        order = [*why]
        return tuple(sorted(made, key=lambda run: _order(order, (run.rank, run.seed))))


def _order(order: list[tuple[int, int]], place: tuple[int, int]) -> int:
    return order.index(place) if place in order else -1


def _seconds(row: Mapping[Any, Any]) -> float:
    """Seconds of training and measuring up to a row."""
    return float(row["train_seconds"]) + float(row["measure_seconds"])


def _place(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Rank and seed of a stored run's configuration."""
    return (config.get("method") or {}).get("rank"), config.get("seed")

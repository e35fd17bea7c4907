"""The result of a pilot: the recommended run with its bands, the runs it is based on, and why the pilot ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.fit import Estimate
from ..analysis.fit.places import Place
from ..analysis.plan.result import Plan
from ..analysis.plan.sequential import Next, Reason
from ..display.numbers import duration, number, plain
from ..display.tables import Result, Shown

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = Estimate(np.nan)


@dataclass(frozen=True)
class PilotRun:
    """A finished run of a pilot.

    Attributes:
        run_id: id of the run.
        rank, seed, steps: rank, seed and last step of the run.
        seconds: seconds of training and measuring.
        forgetting: forgetting at the last step, in nats/token.
        why: why it was chosen, in words; empty for a run that the pilot did not choose.
    """

    run_id: str
    rank: int
    seed: int
    steps: int
    seconds: float
    forgetting: float
    why: str


@dataclass(frozen=True)
class PilotStep:
    """A pilot's next step.

    Attributes:
        following: the next run, or more steps for all runs.
        runs: number of runs finished so far.
        half_width: half width of the band so far, as a share of the budget; NaN before the first fit.
        spent, left: seconds used and left.
    """

    following: Next
    runs: int
    half_width: float
    spent: float
    left: float

    def sentence(self) -> str:
        """What is done next and why, the band so far, and the time left."""
        one = self.following
        about = "" if np.isnan(one.seconds) else f", about {duration(one.seconds)}"
        what = f"rank {one.rank}, seed {one.seed}, {one.steps} steps" if one.rank else f"all runs to {one.steps} steps"
        parts = [f"{what}{about}: {one.why}"]
        if np.isfinite(self.half_width):
            then = f", with it about ±{self.half_width * (1 - one.narrowing):.1%}" if np.isfinite(one.narrowing) else ""
            parts.append(f"band ±{self.half_width:.1%} of the budget{then}")
        parts.append(f"{duration(max(self.left, 0.0))} left")
        return f"[{self.runs} done] {'; '.join(parts)}"


@dataclass(frozen=True)
class PilotResult(Result):
    """The recommended run, and what it is based on.

    Attributes:
        folder: the study folder.
        budget: allowed forgetting, in nats/token above the base model.
        tolerance: half width of the band, as a share of the budget, at which the pilot ends.
        stopped: why it ended: `tolerance` (the band is narrow enough), `time`, `early` (all ranks pass the budget
            before the first measured step), `unspent` (no rank reaches the budget) or `unidentified` (the runs do not
            determine the law).
        why: the same in words.
        rank, steps: rank and steps of the recommended run; None if there is no run, or no band for it.
        forgetting: forgetting of the recommended run, in nats/token: the budget, with the band of the law's mean.
        new_run: the band of one new run, in nats/token.
        half_width: half width of the mean's band, as a share of the budget.
        extrapolated: whether the recommended run is outside the measured range.
        finetune_loss: fine-tuning loss of the recommended run, in nats/token, with its band.
        contradicted: sentences on measured runs that contradict the law near the recommended run.
        places: the tests behind `contradicted`, as in a plan.
        plan: the plan for all ranks, as from `forgetting plan`; None if no law could be fitted.
        runs: the finished runs.
        failed: run id -> reason.
        seconds: seconds used by all calls together.
        command: the command that runs the recommended run; None if there is none.
        report: path of the study's report; None if nothing was measured.
    """

    folder: Path
    budget: float
    tolerance: float
    stopped: Reason
    why: str
    rank: int | None = None
    steps: int | None = None
    forgetting: Estimate = UNKNOWN
    new_run: tuple[float, float] = (np.nan, np.nan)
    half_width: float = np.nan
    extrapolated: bool = False
    finetune_loss: Estimate = UNKNOWN
    contradicted: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    plan: Plan | None = None
    runs: tuple[PilotRun, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    command: str | None = None
    report: Path | None = None

    @property
    def planned(self) -> bool:
        """Whether there is a run to recommend, with a band."""
        return self.rank is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; unknown values are null."""

        def ends(value: Estimate) -> dict[str, float]:
            return {"value": value.value, "low": value.low, "high": value.high}

        forgetting = ends(self.forgetting) | dict(zip(("run_low", "run_high"), self.new_run, strict=True))
        out = {
            "folder": str(self.folder),
            "budget": self.budget,
            "tolerance": self.tolerance,
            "stopped": self.stopped,
            "why": self.why,
            "rank": self.rank,
            "steps": self.steps,
            "forgetting": forgetting,
            "half_width": self.half_width,
            "extrapolated": self.extrapolated,
            "finetune_loss": ends(self.finetune_loss),
            "contradicted": list(self.contradicted),
            "places": [place.to_dict() for place in self.places],
            "plan": None if self.plan is None else self.plan.to_dict(),
            "runs": list(self.runs),
            "failed": self.failed,
            "seconds": round(self.seconds, 1),
            "command": self.command,
            "report": None if self.report is None else str(self.report),
        }
        return {key: plain(value) for key, value in out.items()}

    def to_frame(self) -> pd.DataFrame:
        """The runs, one row each."""
        import pandas as pd

        return pd.DataFrame([vars(run) for run in self.runs], columns=[*PilotRun.__dataclass_fields__])

    def shown(self) -> list[Shown]:
        """The runs, the plan, and the recommended run."""
        parts = []
        if self.runs:
            rows = [
                (f"{run.rank}", f"{run.seed}", f"{run.steps}", duration(run.seconds), number(run.forgetting), run.why)
                for run in self.runs
            ]
            columns = ("rank", "seed", "steps", "time", "forgetting", "chosen because")
            parts.append(Shown([f"pilot in {self.folder}: runs that the plan rests on"], columns, rows, self._failed()))
        if self.plan is not None:
            parts.append(self.plan.shown()[0])
        return [*parts, Shown(self._said())]

    def _failed(self) -> list[str]:
        return [f"failed: {run_id}: {why}" for run_id, why in self.failed.items()]

    def _said(self) -> list[str]:
        lines = [f"ended after {duration(self.seconds)}: {self.why}"]
        if self.rank is not None:
            low, high = (number(max(end, 0.0)) for end in (self.forgetting.low, self.forgetting.high))
            lines.append(
                f"recommended: rank {self.rank} for {self.steps} steps, where the law's mean forgets "
                f"{number(self.budget)} ({low} to {high}, ±{self.half_width:.1%})"
                + ("; it lies outside the measured range" if self.extrapolated else "")
            )
            if np.isfinite(self.new_run).all():
                low, high = (number(max(end, 0.0)) for end in self.new_run)
                lines.append(f"one run of it is expected to forget between {low} and {high}")
            shown = () if self.plan is None else self.plan.sentences
            lines += [line for line in self.contradicted if line not in shown]
            best = None if self.plan is None else self.plan.best
            if best is not None and best.rank != self.rank:
                lines.append(
                    "it is the shortest of the runs that are about as good as the best within the allowed steps"
                )
        else:
            lines.append("no run is recommended")
        lines += [f"run it: {self.command}"] if self.command else []
        lines += [f"report: {self.report}"] if self.report else []
        return lines

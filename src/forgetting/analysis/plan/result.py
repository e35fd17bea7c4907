"""The result of a plan: choices with their intervals, and candidates for the next run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from forgetting.analysis.fit import Estimate
from forgetting.analysis.fit.places import Place
from forgetting.analysis.fit.show import number
from forgetting.display.numbers import plain, several
from forgetting.display.tables import Result, Shown
from forgetting.store.axes import AXES, REPLAY, Axis

if TYPE_CHECKING:
    import pandas as pd


HOURS = "hours: training only, at the speed of this study's runs"
COSTS = {"tokens": "tokens", "flops": "FLOPs", "hours": "hours"}
"""Costs of a run: column heading by attribute."""


@dataclass(frozen=True)
class Choice:
    """One rank, and the steps at which it uses up the budget or reaches the target.

    Attributes:
        rank: the rank; None if the plan compares numbers of parameters, not ranks.
        trainable_params: number of trainable parameters P.
        steps: number of steps N with its interval; infinite if the law never reaches the level. Its upper end is
            infinite if too many resampled laws never reach it.
        finetune_loss, forgetting_loss: the law's mean there, in nats/token; the loss that is not held has a band.
        new_run: by output, the band of one new run, which includes its scatter around the mean; NaN if unknown.
        extrapolated: whether P or N is outside the measured range.
        tokens, flops, hours: cost of the run; None if unknown or infinite.
        replay_fraction, kl_weight: share of replay or weight of KL in a plan with that mitigation; else None.
        forgetting: forgetting above the base model, in nats/token, in a plan with a mitigation; else None.
    """

    rank: float | None
    trainable_params: float
    steps: Estimate
    finetune_loss: Estimate
    forgetting_loss: Estimate
    new_run: dict[str, tuple[float, float]]
    extrapolated: bool
    tokens: float | None
    flops: float | None
    hours: float | None
    replay_fraction: float | None = None
    kl_weight: float | None = None
    forgetting: Estimate | None = None


@dataclass(frozen=True)
class NextRun:
    """A candidate for the next run.

    Attributes:
        rank, trainable_params, steps: rank (None if unknown), trainable parameters and steps of the candidate.
        se_before, se_after: standard error of the answer now, and expected with the candidate, in nats/token.
        narrowing: expected reduction of the interval's width, as a share.
        command: command that adds it to the law's study; None if the study is unknown or cannot grow by it.
        adds: number of runs that the command executes: one for each data set, seed and mitigation of the study, runs
            that are made longer, and pending runs.
        lengthens: whether the command also makes all runs of the study longer.
    """

    rank: float | None
    trainable_params: float
    steps: float
    se_before: float
    se_after: float
    narrowing: float
    command: str | None = None
    adds: int = 0
    lengthens: bool = False


@dataclass(frozen=True)
class Plan(Result):
    """The choices for a budget or a target, and sentences on them.

    Attributes:
        label: name of the fit.
        output: the loss that is held (`forgetting_loss` for a budget, `finetune_loss` for a target).
        level: its value for every choice, in nats/token.
        confidence: nominal coverage of the bands.
        floor: forgetting loss of the base model itself, in nats/token; None if unknown. A budget counts from it.
        frontier: one choice per rank, without ranks that pass the level before the first step, never reach a target, or
            need steps far outside the measured range.
        best: the choice with the lowest fine-tuning loss for the budget, or the least forgetting for the target.
        best_measured: the best choice inside the measured range; None if there is none.
        sentences: what a reader must know.
        matters: whether the choice of rank changes the result, clearly and by more than a negligible amount.
        next_runs: candidates for the next run, best first, if requested.
        places: tests of whether runs measured near the best choice contradict the law; empty without such runs.
        crossing: if they do, the measured steps between which runs with the choice's number of parameters pass the
            level, the first None if they pass it before any measured step; else None.
    """

    label: str
    output: str
    level: float
    confidence: float
    floor: float | None
    frontier: list[Choice]
    best: Choice | None
    best_measured: Choice | None
    sentences: list[str]
    matters: bool = True
    next_runs: list[NextRun] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    crossing: tuple[float | None, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinite steps are null, with `unlimited` true."""

        def choice(c: Choice | None) -> dict[str, Any] | None:
            return None if c is None else {**_plain_choice(c), "unlimited": not np.isfinite(c.steps.value)}

        out: dict[str, Any] = {
            "law": self.label,
            "held": self.output,
            "level": self.level,
            "confidence": self.confidence,
            "floor": self.floor,
            "frontier": [choice(c) for c in self.frontier],
            "best": choice(self.best),
            "best_measured": choice(self.best_measured),
            "sentences": list(self.sentences),
            "places": [place.to_dict() for place in self.places],
            "crossing": None if self.crossing is None else list(self.crossing),
        }
        if self.next_runs:
            out["next_runs"] = [asdict(run) for run in self.next_runs]
        return {key: plain(value) for key, value in out.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row per choice: steps and losses with their intervals, costs, and whether it is extrapolated."""
        import pandas as pd

        return pd.DataFrame([_choice_row(c) for c in self.frontier])

    def shown(self) -> list[Shown]:
        """The choices as a table, with notes."""
        held = self.output.replace("_", " ").replace("finetune", "fine-tuning")
        notes = ["* best"] if self.frontier and self.matters else []
        if self.floor is not None:
            spent = f"; {number(self.level - self.floor)} above it" if self.output == "forgetting_loss" else ""
            notes.append(
                f"forgetting floor (the forgetting loss of the base model itself): {number(self.floor)}{spent}"
            )
        if any(np.isfinite(c.new_run[self.output]).all() for c in self.frontier):
            notes.append(f"in brackets the {self.confidence:.0%} band of the law's mean; `run`, that of one new run")
        notes += self.sentences
        if self.next_runs:
            notes.append("next run, by how much the answer's interval would shrink:")
            notes += [f"  {_name(r)} for {r.steps:g} steps: {r.narrowing:.0%} narrower" for r in self.next_runs]
            notes += _command(self.next_runs[0])
        costs = [name for name in COSTS if any(getattr(c, name) is not None for c in self.frontier)]
        if "hours" in costs:
            notes.append(HOURS)
        return [
            Shown(
                [f"{self.label}: {held} held at {number(self.level)} nats/token"],
                (
                    "rank",
                    "trainable params",
                    "steps",
                    "fine-tuning loss",
                    "forgetting loss",
                    *(COSTS[name] for name in costs),
                    "",
                ),
                [_cells(c, costs, best=self.matters and c is self.best) for c in self.frontier],
                notes,
            )
        ]


@dataclass(frozen=True)
class MitigatedPlan(Plan):
    """A plan over rank, steps and an option of a mitigation: for each value of it, the choice with the best rank.

    `output` is `forgetting` for a budget, and `level` is at most reached, not held.

    Attributes:
        axis: the option, the share of replay or the weight of KL.
        max_steps: limit of a run's steps.
        stops_paying: the value beyond which the minimised loss no longer improves, without an upper end if it is not
            identified; None if the values were given.
        saved: how much lower the minimised loss is than in the best run without the mitigation, in nats/token; None if
            the values were given.
        measured: the smallest and largest value of the option, 0 and the largest measured one.
    """

    axis: Axis = REPLAY
    max_steps: float = np.inf
    stops_paying: Estimate | None = None
    saved: Estimate | None = None
    measured: tuple[float, float] = (0.0, 0.0)

    def instead(self) -> str:
        """A sentence on this plan's best choice, for a better plan over another mitigation."""
        name, other = self.axis.mitigation, f"--{next(other for other in AXES if other != self.axis.name)} 0"
        if self.best is None:
            fails = "stays within the budget" if self.output == "forgetting" else "reaches the target"
            return f"no run with {name} {fails} ({other} shows this plan)"
        what, loss = "fine-tuning loss", self.best.finetune_loss
        if self.output != "forgetting" and self.best.forgetting is not None:
            what, loss = "forgetting", self.best.forgetting
        at = f"a {self.axis.value} of {number(self.axis.set_in(self.best))}"
        return f"{name} instead reaches a {what} of {_span(loss)} at best, at {at} ({other} shows this plan)"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        more = {"stops_paying": self.stops_paying, "saved": self.saved}
        out: dict[str, Any] = {k: None if e is None else _plain_estimate(e) for k, e in more.items()}
        out |= {"max_steps": self.max_steps, "measured": list(self.measured)}
        return {"mitigation": self.axis.name, **super().to_dict(), **{key: plain(v) for key, v in out.items()}}

    def shown(self) -> list[Shown]:
        """The choices as a table with one line per value, and notes."""
        held = "forgetting of at most" if self.output == "forgetting" else "fine-tuning loss of at most"
        of = "of these" if self.stops_paying is None else f"of any {self.axis.value}"
        notes = [f"* best {of}"] if self.best else []
        if any(np.isfinite(run).all() for c in self.frontier for run in c.new_run.values()):
            notes.append(f"in brackets the {self.confidence:.0%} band of the law's mean; `run`, that of one new run")
        notes += self.sentences
        costs = [name for name in COSTS if any(getattr(c, name) is not None for c in self.frontier)]
        if "hours" in costs:
            notes.append(HOURS)
        columns = (self.axis.title, "rank", "trainable params", "steps", "fine-tuning loss", "forgetting")
        return [
            Shown(
                [f"{self.label}: {held} {number(self.level)} nats/token, in at most {self.max_steps:g} steps"],
                (*columns, *(COSTS[name] for name in costs), ""),
                [_mitigated_cells(c, self.axis, costs, best=c is self.best) for c in self.frontier],
                notes,
            )
        ]


class Plans(Mapping[str, Plan], Result):
    """Plans by data set."""

    def __init__(self, plans: Mapping[str, Plan]) -> None:
        self._plans = dict(plans)

    def __getitem__(self, name: str) -> Plan:
        """The plan of a data set."""
        return self._plans[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._plans)

    def __len__(self) -> int:
        return len(self._plans)

    def __repr__(self) -> str:
        return f"Plans({self._plans!r})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, by data set."""
        return {name: plan.to_dict() for name, plan in self.items()}

    def to_frame(self) -> pd.DataFrame:
        """The choices of all data sets, with a column `dataset`."""
        import pandas as pd

        rows = [{"dataset": name, **_choice_row(c)} for name, plan in self.items() for c in plan.frontier]
        return pd.DataFrame(rows)

    def shown(self) -> list[Shown]:
        """All plans."""
        return [part for plan in self.values() for part in plan.shown()]


def _plain_choice(c: Choice) -> dict[str, Any]:
    """A choice for JSON: its estimates have the bands of a new run, but not `identified`, which fits use."""
    out = asdict(c)
    for name in ("steps", "finetune_loss", "forgetting_loss"):
        out[name].pop("identified")
    for name in (*(axis.column for axis in AXES.values()), "forgetting"):
        if out[name] is None:
            del out[name]
    if c.forgetting is not None:
        out["forgetting"].pop("identified")
    for name, (low, high) in out.pop("new_run").items():
        out[name] |= {"run_low": low, "run_high": high}
    return out


def _plain_estimate(e: Estimate) -> dict[str, float]:
    return {"value": e.value, "low": e.low, "high": e.high}


def _choice_row(c: Choice) -> dict[str, Any]:
    row: dict[str, Any] = {"rank": c.rank, "trainable_params": c.trainable_params}
    row |= {axis.column: value for axis in AXES.values() if (value := getattr(c, axis.column)) is not None}
    more = [] if c.forgetting is None else [("forgetting", c.forgetting)]
    for name, e in (("step", c.steps), *_losses(c), *more):
        row |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
        if name in c.new_run:
            row |= dict(zip((f"{name}_run_low", f"{name}_run_high"), c.new_run[name], strict=True))
    return row | {"extrapolated": c.extrapolated, **{name: getattr(c, name) for name in COSTS}}


def _cells(c: Choice, costs: Iterable[str], *, best: bool) -> tuple[str, ...]:
    note = ("outside the measured range" if c.extrapolated else "") + (" *" if best else "")
    rank = "-" if c.rank is None else f"{c.rank:g}"
    losses = [_span(e) + _run(c, name) for name, e in _losses(c)]
    spent = [_short(getattr(c, name)) for name in costs]
    return (rank, f"{c.trainable_params:,.0f}", _steps(c.steps), *losses, *spent, note)


def _mitigated_cells(c: Choice, axis: Axis, costs: Iterable[str], *, best: bool) -> tuple[str, ...]:
    loss = c.forgetting_loss if c.forgetting is None else c.forgetting
    forgot = _span(loss) + _run(c, "forgetting")
    rank, params, steps, tuned, _, *spent = _cells(c, costs, best=best)
    return (number(axis.set_in(c)), rank, params, steps, tuned, forgot, *spent)


def _name(run: NextRun) -> str:
    return f"rank {run.rank:g}" if run.rank is not None else f"{run.trainable_params:,.0f} parameters"


def _command(run: NextRun) -> list[str]:
    if run.command is None:
        return []
    longer = ", including existing runs that continue" if run.lengthens else ""
    return [f"add the first of them: `{run.command}` ({several(run.adds, 'run')} to do{longer})"]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _span(e: Estimate) -> str:
    known = np.isfinite(e.low) and np.isfinite(e.high)
    return number(e.value) + (f" ({number(e.low)} to {number(e.high)})" if known else "")


def _losses(c: Choice) -> tuple[tuple[str, Estimate], tuple[str, Estimate]]:
    return ("finetune_loss", c.finetune_loss), ("forgetting_loss", c.forgetting_loss)


def _run(c: Choice, name: str) -> str:
    low, high = c.new_run[name]
    return f", run {number(low)} to {number(high)}" if np.isfinite([low, high]).all() else ""


def _steps(e: Estimate) -> str:
    if not np.isfinite(e.value):
        return "unlimited"
    if np.isposinf(e.high):
        return f"{e.value:,.0f} (at least {e.low:,.0f})"
    known = np.isfinite(e.low) and np.isfinite(e.high)
    return f"{e.value:,.0f}" + (f" ({e.low:,.0f} to {e.high:,.0f})" if known else "")

"""Decides what a pilot does next: another run, longer runs, or the end.

The first runs are always the same: the highest rank, long enough to use up the budget, then the lowest and the middle
rank, because the law also depends on rank. After that, the next run is the one that is expected to narrow the band of
forgetting at the recommended run most per second, according to the law fitted so far. All runs are lengthened until one
uses up the budget, and later if the recommended run is longer, or if that narrows the band most per second.

Every run has a seed of its own. Runs with the same seed see the data in the same order and deviate from the law
together, so they tell less than independent runs, and bands that count them as independent are too narrow.

The recommended run is the shortest of those that are about as good as the best: by the law, their fine-tuning loss is
above the lowest by too little to matter (`SMALL`). Otherwise noise would decide between equal ranks, and differently
after each run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from forgetting.analysis.fit import Estimate, Fit, fit_study
from forgetting.analysis.fit.study import LEAST
from forgetting.analysis.plan.cost import costs_of_table
from forgetting.analysis.plan.design import OUTPUT, Design
from forgetting.analysis.plan.frontier import measured_spread, plan_budget
from forgetting.analysis.plan.measured import SMALL, Measured, measured_near
from forgetting.analysis.plan.result import Choice, Plan
from forgetting.analysis.selection import finished as are_finished
from forgetting.display.numbers import several
from forgetting.errors import ForgettingError
from forgetting.store.table import fitted_rows

if TYPE_CHECKING:
    import pandas as pd

BANDED = 5
"""Fewest runs for a fit with intervals."""
ENOUGH = 7
"""Fewest runs after which a narrow band ends a pilot; with fewer, it is too often narrow by chance (docs/pilot.md)."""
ROOM, LEAST_ROOM = 1.25, 1.1
"""The first run gets ROOM times the steps in which it uses up the budget, because other ranks may need more; LEAST_ROOM
times are accepted."""
MORE = 1.25
"""Factor by which all runs are lengthened if that is the best option, once the law is fitted."""
SLOPES = (0.3, 2.0)
"""Bounds of the exponent with which the first run's forgetting is extrapolated to the budget."""
FURTHEST, FURTHER = 3.0, 1.5
"""Largest factors by which the first run, and all runs together, are lengthened at a time."""


@dataclass(frozen=True)
class Asked:
    """The task of a pilot.

    Attributes:
        budget: allowed forgetting, in nats/token above the base model.
        tolerance: the pilot ends when the half width of the band at the recommended run is this share of the budget.
        ranks: candidate ranks, ascending, at least three.
        steps: steps at which runs may be measured, ascending, at least three; the last is the limit of a run's steps.
    """

    budget: float
    tolerance: float
    ranks: tuple[int, ...]
    steps: tuple[int, ...]

    def at_least(self, steps: float) -> int:
        """The first measured step that is at least this number; the last one if there is none."""
        return next((step for step in self.steps if step >= steps - 1e-9), self.steps[-1])


@dataclass(frozen=True)
class State:
    """The state of a pilot, in addition to its measurements.

    Attributes:
        steps: number of steps of all runs; before the first run, the fewest that it may have.
        left: seconds left of the pilot's time.
        overhead: seconds that a run takes in addition to training and measuring.
        lost: ranks with a run that diverged or failed.
    """

    steps: int
    left: float
    overhead: float = 0.0
    lost: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Answer:
    """The recommended run according to the runs so far.

    Attributes:
        choice: rank, steps and losses, with their bands.
        forgetting: forgetting above the base model, in nats/token, with the band of the law's mean.
        new_run: the band of one new run.
        half_width: half width of the mean's band, as a share of the budget; NaN without a band.
        runs: number of runs that the law was fitted to.
        plan: the plan for all ranks.
        fit: the law.
        measured: tests of measured runs near the recommended run.
    """

    choice: Choice
    forgetting: Estimate
    new_run: tuple[float, float]
    half_width: float
    runs: int
    plan: Plan
    fit: Fit
    measured: Measured = field(default_factory=Measured)


@dataclass(frozen=True)
class Next:
    """The next step of a pilot.

    Attributes:
        steps: number of steps of all runs; shorter existing runs are continued.
        rank, seed: of the new run; None if existing runs are only made longer.
        why: the reason, in words.
        seconds: expected time; NaN if unknown.
        narrowing: expected reduction of the band's width, as a share; NaN if no law is fitted yet.
    """

    steps: int
    rank: int | None
    seed: int | None
    why: str
    seconds: float = math.nan
    narrowing: float = math.nan


Reason = Literal["tolerance", "time", "early", "unspent", "unidentified"]


@dataclass(frozen=True)
class Stop:
    """Why a pilot ends: the band is narrow enough, the time is up, or there is no answer."""

    reason: Reason
    why: str


@dataclass(frozen=True)
class Runs:
    """The finished runs of a pilot.

    Attributes:
        table: the rows of these runs that fits use.
        done: rank and seed of each run.
        sizes: trainable parameters of each run.
        seconds: by rank, median seconds of training and measuring per step.
        line: the same for any rank: seconds per step, and additional seconds per step and trainable parameter.
    """

    table: pd.DataFrame
    done: tuple[tuple[int, int], ...]
    sizes: tuple[float, ...]
    seconds: dict[int, float]
    line: tuple[float, float]

    def size(self, rank: int) -> float:
        """Trainable parameters of a rank: those of its runs, or in proportion to those of other ranks."""
        known = {one: size for (one, _), size in zip(self.done, self.sizes, strict=True)}
        return known.get(rank) or rank * sum(known.values()) / sum(known)

    def takes(self, rank: int, steps: float) -> float:
        """Expected seconds of training and measuring a run for this number of steps."""
        alone, each = self.line
        return steps * self.seconds.get(rank, alone + each * self.size(rank))

    def curve(self, rank: int) -> tuple[list[float], list[float]]:
        """Steps of a rank's runs, and their mean forgetting over seeds."""
        rows = self.table[self.table["rank"] == rank].groupby("step")["forgetting"].mean()
        return [float(step) for step in rows.index], [float(value) for value in rows]


def finished(table: pd.DataFrame) -> Runs:
    """The finished runs of a study's table."""
    rows = fitted_rows(table)
    rows = rows[are_finished(rows["status"])]
    last = rows.sort_values("step", kind="stable").groupby("run_id", sort=False).tail(1)
    done = tuple((int(rank), int(seed)) for rank, seed in zip(last["rank"], last["seed"], strict=True))
    whole = rows.assign(train_seconds=rows["train_seconds"] + rows["measure_seconds"])
    cost = next(iter(costs_of_table(whole).values()), None)
    line = cost.seconds if cost is not None and cost.seconds is not None else (math.nan, 0.0)
    each = ((last["train_seconds"] + last["measure_seconds"]) / last["step"]).astype(float).groupby(last["rank"])
    seconds = dict(zip(sorted({rank for rank, _ in done}), each.median().tolist(), strict=True))
    return Runs(rows, done, tuple(float(size) for size in last["trainable_params"]), seconds, line)


def decide(table: pd.DataFrame, asked: Asked, state: State) -> tuple[Next | Stop, Answer | None]:
    """Decide what to do next, and compute the answer so far.

    Args:
        table: the study's measurements; only finished runs are used.
        asked: the task.
        state: the pilot's state.
    """
    runs = finished(table) if len(table) else None
    ranks = [rank for rank in asked.ranks if rank not in state.lost]
    if len(ranks) < LEAST:
        return Stop("unidentified", f"runs of {_named(sorted(state.lost))} failed, but three ranks are needed"), None
    if runs is None or not runs.done:
        steps = asked.at_least(max(state.steps, asked.steps[LEAST - 1]))
        if state.left <= 0:
            return Stop("time", "no time is left for a first run"), None
        why = "the highest rank first: it spends the budget in the fewest steps"
        return Next(steps, ranks[-1], 0, why), None
    following, answer = _decide(runs, replace(asked, ranks=tuple(ranks)), state)
    return _in_time(following, runs, state), answer


def _decide(runs: Runs, asked: Asked, state: State) -> tuple[Next | Stop, Answer | None]:
    """The decision after the first run, without regard to the time left, and the answer so far."""
    ranks = asked.ranks
    if (longer := _longer(runs, asked, state)) is not None:
        return longer, None
    counts = Counter(rank for rank, _ in runs.done if rank in ranks)
    middle = ranks[len(ranks) // 2 - (len(ranks) % 2 == 0)]
    for rank, what in ((ranks[-1], "highest"), (ranks[0], "lowest"), (middle, "middle")):
        if rank not in counts:
            why = f"the {what} rank: the law also depends on rank"
            return Next(state.steps, rank, _seed(runs), why), None
    if (stop := _out_of_reach(runs, asked, state)) is not None:
        return stop, None
    answer = _answer(runs, asked)
    if answer is None:
        if len(runs.done) >= 2 * BANDED:
            return Stop("unidentified", f"no law fits these {several(len(runs.done), 'run')}"), None
        rank = min(ranks, key=lambda one: (counts[one], -one))
        return Next(state.steps, rank, _seed(runs), "the rank with the fewest runs, as no law fits yet"), None
    if answer.half_width <= asked.tolerance and len(runs.done) >= ENOUGH:
        return Stop("tolerance", f"the band is within {asked.tolerance:.0%} of the budget"), answer
    if np.isnan(answer.half_width) and BANDED <= len(runs.done) < 2 * BANDED:
        rank = min(counts, key=lambda one: (counts[one], -one))
        return Next(state.steps, rank, _seed(runs), "the rank with the fewest runs, as there is no band yet"), answer
    at = answer.choice.steps.value
    if at > state.steps < asked.steps[-1] and len(runs.done) >= BANDED:
        steps = asked.at_least(min(at * LEAST_ROOM, FURTHER * state.steps))
        why = f"the recommended run has {at:,.0f} steps, which is outside the measured range"
        return Next(steps, None, None, why, _seconds_longer(runs, state, steps)), answer
    return _affordable([*_options(runs, asked, state, answer)], state.left), answer


def _longer(runs: Runs, asked: Asked, state: State) -> Next | None:
    """Longer runs, if no run has used up the budget yet, or if the only run has barely done so; else None."""
    most = asked.steps[-1]
    if state.steps >= most:
        return None
    curves = {rank: runs.curve(rank) for rank in dict(runs.done)}
    rank, (steps, forgot) = max(curves.items(), key=lambda one: one[1][1][-1])
    wanted = ROOM * _crossing(steps, forgot, asked.budget)
    enough = state.steps >= LEAST_ROOM / ROOM * wanted
    if forgot[-1] >= asked.budget and (len(runs.done) > 1 or enough):
        return None
    target = asked.at_least(min(max(wanted, state.steps + 1), FURTHEST * state.steps))
    if forgot[-1] < asked.budget:
        said = f"rank {rank} forgets {forgot[-1]:.3g} by step {state.steps}"
        why = f"{said}, less than the budget"
    else:
        why = f"rank {rank} spends the budget at about step {wanted / ROOM:.0f}, and other ranks may need more"
    return Next(target, None, None, why, _seconds_longer(runs, state, target))


def _crossing(steps: Sequence[float], forgot: Sequence[float], budget: float) -> float:
    """The step at which a run uses up a budget: interpolated, or extrapolated by a power law of the steps."""
    before = (0.0, 0.0)
    for step, value in zip(steps, forgot, strict=True):
        if value >= budget:
            return before[0] + (step - before[0]) * (budget - before[1]) / (value - before[1])
        before = (step, max(value, before[1]))
    first, last = forgot[0], forgot[-1]
    slope = SLOPES[1]
    if 0 < first < last and steps[0] < steps[-1]:
        slope = float(np.clip(math.log(last / first) / math.log(steps[-1] / steps[0]), *SLOPES))
    return steps[-1] * (budget / last) ** (1 / slope) if last > 0 else math.inf


def _out_of_reach(runs: Runs, asked: Asked, state: State) -> Stop | None:
    """The end, if all ranks exceed the budget by the first measured step, or none uses it up by the last; else None."""
    curves = {rank: runs.curve(rank) for rank in dict(runs.done)}
    least, (steps, _) = min(curves.items(), key=lambda one: one[1][1][0])
    first = curves[least][1][0]
    if first > asked.budget:
        return Stop(
            "early",
            f"by step {steps[0]:.0f}, the first that is measured, every rank has forgotten more than the budget (rank "
            f"{least} the least, {first:.3g})",
        )
    most = max(curves, key=lambda rank: max(curves[rank][1]))
    last = max(curves[most][1])
    if last < asked.budget and state.steps >= asked.steps[-1]:
        return Stop(
            "unspent",
            f"no rank spends the budget in {several(state.steps, 'step')}, the most that a run may take (rank {most} "
            f"forgets most, {last:.3g})",
        )
    return None


def _answer(runs: Runs, asked: Asked) -> Answer | None:
    """The recommended run of the law fitted to the runs; None if none can be fitted, or the budget is never used up."""
    try:
        fit = next(iter(fit_study(runs.table).values())).get("shifted_power")
        if fit is None:
            return None
        return answer_of(fit, asked, runs)
    except ForgettingError:
        return None


def answer_of(fit: Fit, asked: Asked, runs: Runs) -> Answer | None:
    """The run that a law recommends; None if no rank uses up the budget within finite steps."""
    cost = next(iter(costs_of_table(runs.table).values()), None)
    plan = plan_budget(fit, asked.budget, ranks=asked.ranks, cost=cost)
    choice = _shortest(plan, asked, SMALL * measured_spread(fit, "finetune_loss"))
    if choice is None or plan.floor is None:
        return None
    told = fit.predict(OUTPUT, trainable_params=choice.trainable_params, step=choice.steps.value)
    low, high, run_low, run_high = (
        float(end) - plan.floor for end in (told.low, told.high, told.run_low, told.run_high)
    )
    half = (high - low) / 2 / asked.budget
    forgetting = Estimate(float(told.value) - plan.floor, low, high)
    near = measured_near(fit, choice, plan.output, plan.level)
    return Answer(choice, forgetting, (run_low, run_high), half, len(runs.done), plan, fit, near)


def _shortest(plan: Plan, asked: Asked, small: float) -> Choice | None:
    """The choice with the fewest steps, among those with a fine-tuning loss at most `small` above the lowest.

    Choices with more steps than a run may take are left out, unless all have.
    """
    finite = [choice for choice in plan.frontier if np.isfinite(choice.steps.value)]
    allowed = [choice for choice in finite if choice.steps.value <= asked.steps[-1]] or finite
    lowest = min((choice.finetune_loss.value for choice in allowed), default=math.nan)
    good = [choice for choice in allowed if choice.finetune_loss.value <= lowest + small]
    return min(good, key=lambda choice: choice.steps.value, default=None)


def _options(runs: Runs, asked: Asked, state: State, answer: Answer) -> Iterator[Next]:
    """Yield each possible next run, and longer runs, with their expected narrowing of the band."""
    few = len(runs.done) < BANDED
    place = answer.choice
    design = Design(answer.fit, place.trainable_params, place.steps.value, few=few)
    grid = [step for step in asked.steps if step <= state.steps]
    now = design.error(runs.sizes, grid)
    for rank in asked.ranks:
        then = design.error([*runs.sizes, runs.size(rank)], grid)
        seconds = runs.takes(rank, state.steps) + state.overhead
        yield _option(state.steps, rank, _seed(runs), answer, 1 - then / now, seconds, asked.tolerance)
    longer = asked.at_least(MORE * state.steps)
    if longer > state.steps:
        then = design.error(runs.sizes, [step for step in asked.steps if step <= longer])
        seconds = _seconds_longer(runs, state, longer)
        yield _option(longer, None, None, answer, 1 - then / now, seconds, asked.tolerance)


def _option(
    steps: int, rank: int | None, seed: int | None, answer: Answer, narrowing: float, seconds: float, tolerance: float
) -> Next:
    what = "it" if rank is not None else f"making all runs {steps} steps long"
    if np.isnan(answer.half_width):
        why = f"{what} narrows the answer most for its time; a band needs {several(BANDED, 'run')}"
    elif answer.half_width <= tolerance:
        chance = f"the band may be narrow by chance until there are {several(ENOUGH, 'run')}"
        why = f"{what} narrows the band most for its time; {chance}"
    else:
        why = f"{what} narrows the band most for its time"
    return Next(steps, rank, seed, why, seconds, narrowing)


def _affordable(options: Sequence[Next], left: float) -> Next:
    """The option that narrows the answer most per second, among those that fit the time left; else the quickest."""
    inside = [one for one in options if one.seconds <= left]
    if not inside:
        return min(options, key=lambda one: one.seconds)
    return max(inside, key=lambda one: one.narrowing / one.seconds)


def _in_time(following: Next | Stop, runs: Runs, state: State) -> Next | Stop:
    """The next step with its expected seconds, or the end if not enough time is left."""
    if isinstance(following, Stop):
        return following
    seconds = following.seconds
    if np.isnan(seconds) and following.rank is not None:
        seconds = runs.takes(following.rank, following.steps) + state.overhead
    if seconds > state.left:
        return Stop("time", f"the next run would take about {seconds:.0f} s, and {max(state.left, 0):.0f} s are left")
    return replace(following, seconds=seconds)


def _seconds_longer(runs: Runs, state: State, steps: int) -> float:
    """Expected seconds to lengthen all runs to this number of steps."""
    return sum(runs.takes(rank, steps - state.steps) + state.overhead for rank, _ in runs.done)


def _seed(runs: Runs) -> int:
    """A seed that no finished run has."""
    return 1 + max((seed for _, seed in runs.done), default=-1)


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"

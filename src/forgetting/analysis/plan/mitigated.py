"""Plans with a mitigation: rank, steps and its option's value for a budget or a target, and where more stops paying.

The option is the share of replay or the weight of KL. For each of its values, a run takes as many steps, up to a limit,
as keep its final forgetting within the budget. Only the end counts, since with a mitigation forgetting may fall again
during a run. A larger value allows more steps but costs fine-tuning loss. The lowest loss therefore falls as the value
grows while the budget limits the steps, and rises once `max_steps` limits them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from forgetting.analysis.fit import Estimate, Fit
from forgetting.analysis.fit.show import number, spans
from forgetting.analysis.laws.base import Array, Law
from forgetting.analysis.plan.cost import Cost
from forgetting.analysis.plan.frontier import FAR, rank_grid
from forgetting.analysis.plan.measured import Measured, measured_near
from forgetting.analysis.plan.result import Choice, MitigatedPlan
from forgetting.analysis.plan.surface import band
from forgetting.display.numbers import several
from forgetting.errors import UsageError
from forgetting.store.axes import AXES, Axis

VALUES = 48
"""Number of values compared besides 0, log-spaced from a 200th of the largest measured value up to it."""
PLACES = 64
"""Number of log-spaced steps at which losses are evaluated; between them, they are interpolated linearly."""
HALVINGS = 5
"""Number of halvings of the largest measured value that a plan shows, besides this value and 0."""
BISECTIONS = 60


@dataclass(frozen=True)
class _Problem:
    """The problem to solve: the lowest fine-tuning loss within a budget, or the least forgetting that reaches a loss.

    Attributes:
        law: the law in fitted coordinates.
        axis: the option.
        budget, target: budget of forgetting or target fine-tuning loss, in nats/token; one of the two is None.
        steps: [PLACES] steps at which losses are evaluated, ascending; the last is the limit of a run's steps.
    """

    law: Law
    axis: Axis
    budget: float | None
    target: float | None
    steps: Array

    def solve(self, theta: Array, params: float, settings: Array) -> tuple[Array, Array]:
        """Steps and the loss to minimise there, [S, G] each, for [S, K] parameters and [S, G] settings.

        Both are NaN if no number of steps stays within the budget or reaches the target.
        """
        count, each = settings.shape
        steps = np.tile(self.steps, (count, each))
        x = {
            "trainable_params": np.full_like(steps, params),
            "step": steps,
            self.axis.column: np.repeat(settings, PLACES, axis=1),
        }
        with np.errstate(all="ignore"):
            values = self.law.values(theta, x).reshape(count, 2, each, PLACES)
        held, asked = (values[:, 1], values[:, 0]) if self.budget is not None else (values[:, 0], values[:, 1])
        level = self.budget if self.budget is not None else self.target
        place = _last_within(held, float(level or 0.0), rising=self.budget is not None)
        found = _at(asked, place)
        if self.target is not None:  # forgetting rises and then falls, so it is least at the first or the last step
            longest = np.where(np.isfinite(place), asked[..., -1], np.nan)
            place, found = np.where(longest < found, PLACES - 1.0, place), np.fmin(longest, found)
        return np.exp(np.interp(place, np.arange(PLACES), np.log(self.steps))), found


def _last_within(held: Array, level: float, *, rising: bool) -> Array:
    """[S, G] fractional index where [S, G, T] values are last (`rising`) or first within a level; NaN if never."""
    within = held <= level
    if rising:
        last = PLACES - 1 - np.argmax(within[..., ::-1], axis=-1)
        other = np.minimum(last + 1, PLACES - 1)
    else:
        last = np.argmax(within, axis=-1)
        other = np.maximum(last - 1, 0)
    one, two = (np.take_along_axis(held, at[..., None], axis=-1)[..., 0] for at in (last, other))
    with np.errstate(all="ignore"):
        part = np.where(other == last, 0.0, (level - one) / (two - one))
    return np.where(within.any(axis=-1), last + part * (other - last), np.nan)


def _at(values: Array, place: Array) -> Array:
    """[S, G] values, interpolated from [S, G, T] values at fractional indices."""
    low = np.clip(np.nan_to_num(place).astype(int), 0, PLACES - 2)
    one, two = (np.take_along_axis(values, (low + i)[..., None], axis=-1)[..., 0] for i in (0, 1))
    return np.asarray(one + (two - one) * (place - low))


@dataclass(frozen=True)
class _Best:
    """For each parameter vector, [S]: the best setting, its loss, P and steps, and the best loss of plain runs."""

    setting: Array
    loss: Array
    params: Array
    steps: Array
    plain: Array


def _best(problem: _Problem, theta: Array, grid: Sequence[tuple[float | None, float]], largest: float) -> _Best:
    """The best setting from 0 to `largest` over all sizes in the grid, for each of [S, K] parameter vectors."""
    settings = np.concatenate([[0.0], np.geomspace(largest / 200, largest, VALUES)])
    losses, steps, tried = [], [], []
    for _, params in grid:
        own = np.tile(settings, (len(theta), 1))
        if problem.budget is not None:  # add the setting at which the longest run just uses up the budget
            own = np.concatenate([own, _kink(problem, theta, params, largest)[:, None]], axis=1)
        n, loss = problem.solve(theta, params, own)
        losses.append(loss)
        steps.append(n)
        tried.append(own)
    every, taken, of = (np.stack(v, axis=1) for v in (losses, steps, tried))  # [S, ranks, G]
    flat = np.where(np.isfinite(every), every, np.inf).reshape(len(theta), -1)
    at = np.argmin(flat, axis=1)[:, None]

    def pick(values: Array) -> Array:
        return np.asarray(np.take_along_axis(values.reshape(len(theta), -1), at, axis=1)[:, 0])

    params = np.repeat(np.array([p for _, p in grid]), every.shape[2])[at[:, 0]]
    best = np.asarray(np.where(np.isfinite(flat.min(axis=1)), pick(every), np.nan))
    plain = np.where(np.isfinite(every[:, :, 0]), every[:, :, 0], np.inf).min(axis=1)
    return _Best(pick(of), best, params, pick(taken), np.where(np.isfinite(plain), plain, np.nan))


def _kink(problem: _Problem, theta: Array, params: float, largest: float) -> Array:
    """[S] the setting, between 0 and the largest, at which forgetting at the last step equals the budget."""
    low, high = np.zeros(len(theta)), np.full(len(theta), largest)
    at = {"trainable_params": np.array([[params]] * len(theta)), "step": np.array([[problem.steps[-1]]] * len(theta))}
    for _ in range(BISECTIONS):  # forgetting falls with the setting
        middle = (low + high) / 2
        with np.errstate(all="ignore"):
            over = problem.law.values(theta, {**at, problem.axis.column: middle[:, None]})[:, 1, 0] > problem.budget
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    return high  # forgets no more than the budget, unless even the largest setting does


def plan_mitigated(
    fit: Fit,
    *,
    budget: float | None = None,
    target: float | None = None,
    ranks: Sequence[float] | None = None,
    params: Sequence[float] | None = None,
    params_per_rank: float | None = None,
    settings: Sequence[float] | None = None,
    max_steps: float | None = None,
    floor: float | None = None,
    cost: Cost | None = None,
) -> MitigatedPlan:
    """Find rank, steps and the share of replay or weight of KL for a budget of forgetting or a fine-tuning loss.

    Args:
        fit: a law over an option of a mitigation (`store.axes`).
        budget: allowed forgetting at the end of the run, in nats/token above the base model.
        target: fine-tuning loss to reach with the least forgetting, in nats/token; give this or a budget.
        ranks, params, params_per_rank: see `plan_budget`.
        settings: values of the option to show and choose from; by default the plan shows 0, the largest measured value
            and halvings of it, and may choose any value up to it.
        max_steps: limit of a run's steps; default the most measured steps.
        floor: forgetting loss of the base model itself, in nats/token; default that of the fitted study.
        cost: cost of one step, if known.

    Raises:
        UsageError: another law, an invalid budget, setting, rank or number of steps, or unknown parameters of a rank.
    """
    axis = AXES.get(fit.law)
    if axis is None:
        raise UsageError(f"a plan with a mitigation needs one of the laws {', '.join(AXES)}, not '{fit.law}'")
    if budget is not None and not (np.isfinite(budget) and budget > 0):
        raise UsageError(f"the budget is {budget}; it must be a positive number of nats per token")
    first, last = fit.measured_range["step"]
    largest = fit.measured_range[axis.column][1]
    most = last if max_steps is None else max_steps
    if not first <= most <= FAR * last:
        raise UsageError(
            f"max_steps (--max-steps) is {most:g}: {first:g} to {last:g} steps were measured, and the law says nothing "
            f"of runs that are shorter, or more than {FAR:g} times as long"
        )
    if settings is not None and not all(map(axis.holds, settings)):
        raise UsageError(f"{axis.flag}: got {', '.join(f'{value:g}' for value in settings)}; {axis.domain}")
    law, theta, draws = fit.model()
    problem = _Problem(law, axis, budget, target, np.geomspace(max(1.0, first / FAR), most, PLACES))
    grid = rank_grid(fit, ranks, params, params_per_rank)
    known = fit.diagnostics.get("forgetting_floor") if floor is None else floor
    maker = _Maker(fit, problem, theta, draws, grid, None if known is None else float(known), cost)
    return maker.plan(largest, settings)


@dataclass(frozen=True)
class _Maker:
    """Makes the choices of a plan, from what they share."""

    fit: Fit
    problem: _Problem
    theta: Array
    draws: Array
    grid: list[tuple[float | None, float]]
    floor: float | None
    cost: Cost | None

    def plan(self, largest: float, settings: Sequence[float] | None) -> MitigatedPlan:
        budget, axis = self.problem.budget, self.problem.axis
        output, level = ("forgetting", budget) if budget is not None else ("finetune_loss", self.problem.target)
        shown = sorted(set(settings)) if settings else [0.0, *(largest / 2**i for i in range(HALVINGS, -1, -1))]
        choices = [c for value in shown if (c := self.at(value)) is not None]
        stops = saved = None
        if settings is None:
            best, stops, saved = self.best(largest)
            if best is not None:
                same = next((c for c in choices if axis.set_in(c) == axis.set_in(best)), None)
                best = same or best  # the same object, as choices without bands are not equal
                choices = choices if same else sorted([*choices, best], key=axis.set_in)
        else:
            best = min(choices, key=self.asked, default=None)
        inside = [c for c in choices if not c.extrapolated]
        made = MitigatedPlan(
            self.fit.label, output, float(level or 0.0), self.fit.confidence, self.floor, choices, best,
            min(inside, key=self.asked, default=None), [], max_steps=float(self.problem.steps[-1]), stops_paying=stops,
            saved=saved, axis=axis, measured=(0.0, largest),
        )  # fmt: skip
        near = measured_near(self.fit, made.best, made.output, made.level)
        return replace(made, sentences=self.say(made, near), places=list(near.places), crossing=near.crossing)

    def asked(self, choice: Choice) -> float:
        """The loss to minimise."""
        loss = choice.finetune_loss if self.problem.budget is not None else choice.forgetting
        return np.nan if loss is None else float(loss.value)

    def at(self, setting: float) -> Choice | None:
        """The best rank at a setting; None if no rank stays within the budget or reaches the target."""
        solved = [self.problem.solve(self.theta[None], params, np.array([[setting]])) for _, params in self.grid]
        losses = np.array([loss[0, 0] for _, loss in solved])
        if not np.isfinite(losses).any():
            return None
        which = int(np.nanargmin(losses))
        return self.choice(*self.grid[which], setting, float(solved[which][0][0, 0]))

    def best(self, largest: float) -> tuple[Choice | None, Estimate | None, Estimate | None]:
        """The best choice over all settings, its setting with an interval, and its saving over the best plain run."""
        own = _best(self.problem, self.theta[None], self.grid, largest)
        if not np.isfinite(own.loss[0]):
            return None, None, None
        setting, params = float(own.setting[0]), float(own.params[0])
        rank = next(rank for rank, size in self.grid if size == params)
        stops, saved = Estimate(setting), Estimate(float(own.plain[0] - own.loss[0]))
        if len(self.draws):
            drawn = _best(self.problem, self.draws, self.grid, largest)
            stops = band(self.fit, setting, drawn.setting)
            saved = band(self.fit, saved.value, drawn.plain - drawn.loss)
            if not stops.high < largest:  # nothing beyond was measured
                stops = replace(stops, high=np.nan)
            stops = replace(stops, low=max(stops.low, 0.0))
        return self.choice(rank, params, setting, float(own.steps[0])), stops, saved

    def choice(self, rank: float | None, params: float, setting: float, steps: float) -> Choice:
        """A choice with its bands, with steps rounded down to stay within the budget, or up to reach the target."""
        if self.problem.budget is not None:
            whole = max(1.0, np.floor(steps + 1e-6))
        else:
            whole = max(1.0, min(np.ceil(steps - 1e-6), np.floor(self.problem.steps[-1] + 1e-6)))
        at = {"trainable_params": params, "step": whole, self.problem.axis.column: setting}
        told = {output: self.fit.predict(output, **at) for output in self.fit.law_object.outputs}
        tuned, forgot = (
            Estimate(float(p.value), float(p.low), float(p.high)) for p in (told["finetune_loss"], told["forgetting"])
        )
        runs = {name: (float(p.run_low), float(p.run_high)) for name, p in told.items()}
        floor = np.nan if self.floor is None else self.floor
        runs["forgetting_loss"] = (runs["forgetting"][0] + floor, runs["forgetting"][1] + floor)
        loss = Estimate(forgot.value + floor, forgot.low + floor, forgot.high + floor)
        spent: tuple[float | None, float | None, float | None] = (None, None, None)
        if (cost := self.cost) is not None:
            cost = cost.of_mitigated() if setting > 0 else cost
            spent = cost.tokens(whole), cost.flops(whole, params), cost.hours(whole, params)
        outside = bool(told["finetune_loss"].extrapolated)
        made: dict[str, Any] = {self.problem.axis.column: setting}
        chosen = Choice(rank, params, Estimate(whole), tuned, loss, runs, outside, *spent, forgetting=forgot)
        return replace(chosen, **made)

    def say(self, plan: MitigatedPlan, near: Measured) -> list[str]:
        """The plan's sentences; `near` are the tests of measured runs near its best choice."""
        out = []
        if plan.best is None:
            low = float(self.problem.steps[0])
            what = f"keeps forgetting at {plan.level:g}" if plan.output == "forgetting" else f"reaches {plan.level:g}"
            return [f"no rank and {self.problem.axis.value} compared {what} within {low:g} to {plan.max_steps:g} steps"]
        if plan.stops_paying is not None:
            out.append(_paying(plan, plan.stops_paying))
        if plan.saved is not None and np.isfinite(plan.saved.value) and plan.axis.set_in(plan.best) > 0:
            out.append(_saving(plan, plan.saved))
        if plan.output == "forgetting" and plan.best.steps.value >= np.floor(plan.max_steps) and plan.max_steps:
            out.append(
                f"the best choice takes all {plan.max_steps:g} steps that a run may take: the answer is for this limit "
                "(--max-steps)"
            )
        outside = sum(c.extrapolated for c in plan.frontier)
        if outside:
            of = f"{outside} of {several(len(plan.frontier), 'choice')} {'lies' if outside == 1 else 'lie'}"
            out.append(f"{of} outside the measured range: an extrapolation")
            if self.fit.rivals:
                out.append(spans(self.fit.band_laws()))
        out += near.sentences
        if not self.fit.draws:
            out.append(f"this law has no intervals, so nothing here has a band: {self.fit.no_bands}")
        if self.cost is not None and self.cost.mitigated is not None:
            out.append(
                f"tokens are those of the fine-tuning data; FLOPs with {plan.axis.mitigation} are left out, because "
                "its own passes are not counted; hours are those of runs with it"
            )
        return out


def _paying(plan: MitigatedPlan, stops: Estimate) -> str:
    """A sentence on where the mitigation stops paying."""
    largest, what = plan.measured[1], "the fine-tuning loss" if plan.output == "forgetting" else "forgetting"
    name, value = plan.axis.mitigation, plan.axis.value
    if stops.value >= largest:
        said = f"{what} still improves at the largest measured {value}, {largest:g}"
        return f"where {name} stops paying is not identified: {said}"
    if stops.value <= 0:
        known = f" (at most {number(stops.high)})" if stops.high > 0 else ""
        return f"{name} does not pay here: the best run has none{known}"
    known = f" ({number(stops.low)} to {number(stops.high)})" if np.isfinite(stops.high) else ""
    if np.isfinite(stops.low) and not np.isfinite(stops.high):
        known = f" (at least {number(stops.low)}; the largest measured {value}, {largest:g}, may be too small)"
    return f"{name} stops paying at a {value} of {number(stops.value)}{known}: beyond it {what} no longer improves"


def _saving(plan: MitigatedPlan, saved: Estimate) -> str:
    """A sentence on what the mitigation saves."""
    what = "fine-tuning loss" if plan.output == "forgetting" else "forgetting"
    known = np.isfinite(saved.low) and np.isfinite(saved.high)
    said = f" ({number(saved.low)} to {number(saved.high)})" if known else ""
    unclear = "; this is not clearly different from 0" if known and saved.low <= 0 <= saved.high else ""
    name = plan.axis.mitigation
    return f"against the best run without {name} it saves {number(saved.value)}{said} nats/token of {what}{unclear}"

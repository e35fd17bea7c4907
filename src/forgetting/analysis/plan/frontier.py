"""Plans for each rank: the steps that use up a budget of forgetting, or that reach a target fine-tuning loss.

According to the paper, rank and steps only move a run along one line of fine-tuning loss against forgetting. A plan
therefore also says whether the choice of rank matters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forgetting.analysis.fit import Estimate, Fit
from forgetting.analysis.fit.show import spans
from forgetting.analysis.laws.base import ROUNDING, SIZES, Array, incomputable
from forgetting.analysis.plan.cost import Cost
from forgetting.analysis.plan.measured import SMALL, loss_name, measured_near
from forgetting.analysis.plan.result import Choice, Plan
from forgetting.analysis.plan.surface import band, need_surface, steps_band, surface_of
from forgetting.display.numbers import several
from forgetting.errors import UsageError

FAR = 4.0  # plans leave out choices whose steps are outside the measured range by more than this factor


def plan_budget(
    fit: Fit,
    budget: float,
    *,
    ranks: Sequence[float] | None = None,
    params: Sequence[float] | None = None,
    params_per_rank: float | None = None,
    floor: float | None = None,
    cost: Cost | None = None,
) -> Plan:
    """Find the ranks and steps that use up a budget of forgetting.

    Args:
        fit: a `shifted_power` law.
        budget: allowed forgetting, in nats/token above the floor; if no floor is known, the forgetting loss itself.
        ranks: ranks to compare; default powers of two across the measured range.
        params: trainable parameters to compare, instead of ranks.
        params_per_rank: P of rank 1, if the fit does not know it.
        floor: forgetting loss of the base model itself, in nats/token; default that of the fitted study.
        cost: cost of one step, if known.

    Raises:
        UsageError: another law, an invalid rank or one with unknown parameters, or a budget that is not positive.
    """
    need_surface(fit)
    if not (np.isfinite(budget) and budget > 0):
        raise UsageError(f"the budget is {budget}; it must be a positive number of nats per token")
    known = fit.diagnostics.get("forgetting_floor") if floor is None else floor
    level = budget + (float(known) if known is not None else 0.0)
    grid = rank_grid(fit, ranks, params, params_per_rank)
    choices = _choices(fit, "forgetting_loss", level, grid, cost)
    notes = [] if known is not None else ["the floor is unknown: treating the budget as the forgetting loss itself"]
    return _plan(fit, "forgetting_loss", level, None if known is None else float(known), choices, len(grid), notes)


def plan_target(
    fit: Fit,
    target: float,
    *,
    ranks: Sequence[float] | None = None,
    params: Sequence[float] | None = None,
    params_per_rank: float | None = None,
    floor: float | None = None,
    cost: Cost | None = None,
) -> Plan:
    """Find the ranks and steps that reach a fine-tuning loss with the least forgetting.

    Args:
        fit: a `shifted_power` law.
        target: fine-tuning loss to reach, in nats/token.
        ranks, params, params_per_rank, floor, cost: see `plan_budget`.

    Raises:
        UsageError: another law, an invalid rank or one with unknown parameters, or a target that is not finite.
    """
    need_surface(fit)
    if not np.isfinite(target):
        raise UsageError(f"the target loss is {target}; it must be a number of nats per token")
    grid = rank_grid(fit, ranks, params, params_per_rank)
    choices = _choices(fit, "finetune_loss", target, grid, cost)
    known = fit.diagnostics.get("forgetting_floor") if floor is None else floor
    return _plan(fit, "finetune_loss", target, None if known is None else float(known), choices, len(grid), [])


def rank_grid(
    fit: Fit, ranks: Sequence[float] | None, params: Sequence[float] | None, per_rank: float | None
) -> list[tuple[float | None, float]]:
    """Pairs of rank (None if unknown) and trainable parameters to compare.

    Raises:
        UsageError: values that are not positive, or ranks although the parameters of a rank are unknown.
    """
    for name, values in (("rank", ranks), ("trainable parameters", params)):
        if values is not None and (not len(values) or min(values) <= 0):
            raise UsageError(f"{name} {', '.join(str(v) for v in values) or '(none)'}: give positive numbers")
    if params is not None:
        return _sized([(None, float(p)) for p in dict.fromkeys(params)])
    scale = per_rank if per_rank is not None else fit.diagnostics.get("params_per_rank")
    low, high = fit.measured_range["trainable_params"]
    if scale is None:
        if ranks is not None:
            raise UsageError(
                "this law does not know how many parameters a rank has; give params_per_rank (--params-per-rank) or "
                "model (--model)"
            )
        return [(None, float(p)) for p in (np.geomspace(low, high, 6) if low < high else [low])]
    if ranks is None:
        first = int(np.ceil(np.log2(low / scale) - 1e-9))
        last = int(np.floor(np.log2(high / scale) + 1e-9))
        ranks = [2.0**k for k in range(first, last + 1)] or [low / scale]
    return _sized([(float(r), float(r) * float(scale)) for r in dict.fromkeys(ranks)])


def _sized(grid: list[tuple[float | None, float]]) -> list[tuple[float | None, float]]:
    """The grid, if none of its numbers of trainable parameters is too large or too small to compute with.

    Raises:
        UsageError: one is.
    """
    if wrong := [params for _, params in grid if incomputable(np.array(params))]:
        raise UsageError(f"trainable parameters are {wrong[0]:g} where {SIZES}")
    return grid


def _choices(
    fit: Fit, output: str, level: float, grid: Sequence[tuple[float | None, float]], cost: Cost | None
) -> list[Choice]:
    """The choice at each rank, except for ranks that pass the level before the first step.

    Raises:
        UsageError: another number of trainable parameters, although the law was fitted at only one.
    """
    low, high = fit.measured_range["trainable_params"]
    other = [params for _, params in grid if abs(params - low) > 1e-9 * low]
    if low == high and other:
        raise UsageError(
            f"{other[0]:,.0f} trainable parameters: '{fit.label}' was fitted at only one number, {low:,.0f}, and says "
            "nothing about others"
        )
    surface = surface_of(fit)
    out = []
    for rank, params in grid:
        steps = float(surface.steps_at(surface.theta, params, output, level)[0])
        if steps < 1:
            continue
        outside = bool(fit.outside({"trainable_params": np.array([params]), "step": np.array([steps])})[0])
        drawn = surface.drawn_steps(params, output, level, outside=outside)
        limit = not np.isfinite(steps)  # then the losses are the surface's limits, and neither is held
        ends = np.full(drawn.shape, np.inf) if limit else drawn
        losses = []
        for name in ("finetune_loss", "forgetting_loss"):
            value = float(surface.loss_at(surface.theta, params, np.array([steps]), name)[0])
            held = name == output and not limit  # equal for all choices by construction, so it has no band
            spread = surface.drawn_losses(params, ends, name, outside=outside)
            # a law without a limit diverges there: its draws are not lost, but show that there is no limit
            bare = held or (limit and bool(fit.rivals) and not np.isfinite(spread).all())
            losses.append(Estimate(value) if bare else band(fit, value, spread))
        finite = cost is not None and np.isfinite(steps)
        out.append(
            Choice(
                rank,
                params,
                steps_band(fit, steps, drawn),
                losses[0],
                losses[1],
                {
                    name: _new_run(fit, name, e, held=name == output and not limit)
                    for name, e in zip(surface.law.outputs, losses, strict=True)
                },
                outside,
                cost.tokens(steps) if cost is not None and finite else None,
                cost.flops(steps, params) if cost is not None and finite else None,
                cost.hours(steps, params) if cost is not None and finite else None,
            )
        )
    return out


def _new_run(fit: Fit, output: str, mean: Estimate, *, held: bool) -> tuple[float, float]:
    """The band of one new run around a mean; a held mean has no error of its own."""
    if not fit.draws or (not held and np.isnan([mean.low, mean.high]).any()):
        return np.nan, np.nan
    ends = [mean.value if held else end for end in (mean.low, mean.high)]
    low, high = fit.new_run(output, *(np.array([v]) for v in (mean.value, *ends)))
    return float(low[0]), float(high[0])


def _plan(
    fit: Fit,
    output: str,
    level: float,
    floor: float | None,
    choices: list[Choice],
    compared: int,
    notes: list[str],
) -> Plan:
    """The plan with its sentences, from the choices at all ranks; `compared` is the number of ranks."""
    every = choices if output == "forgetting_loss" else [c for c in choices if np.isfinite(c.steps.value)]
    reached = [c for c in every if not _far(fit, c)]
    if every:
        notes = [*notes, *_never(output, level, choices, every, compared)]
    notes = [*notes, *_left_out(fit, output, level, every, reached, compared)]
    other = "finetune_loss" if output == "forgetting_loss" else "forgetting_loss"

    def key(choice: Choice) -> float:
        return float(getattr(choice, other).value)

    best = min(reached, key=key, default=None)
    measured = min((c for c in reached if not c.extrapolated), key=key, default=None)
    said, matters = _say(fit, output, level, reached, other) if reached or not every else ([], True)
    sentences = [*notes, *said]
    matters = matters and not fit.no_bands
    outside = sum(c.extrapolated for c in reached)
    if matters and best is not None and best.extrapolated:
        sentences.append("the best choice is outside the measured range: its numbers are an extrapolation")
    elif outside:
        lie, whose = ("lies", "its") if outside == 1 else ("lie", "their")
        of = f"{outside} of {several(len(reached), 'choice')}"
        sentences.append(f"{of} {lie} outside the measured range: {whose} numbers are extrapolations")
    if fit.rivals and any(c.extrapolated for c in reached):
        sentences.append(spans(fit.band_laws()))
    if fit.draws and any(np.isnan(getattr(c, other).low) for c in reached if np.isfinite(c.steps.value)):
        sentences.append("a loss has no band if more than a fifth of its draws never reach the level")
    if fit.draws and any(np.isnan(e.low) for c in reached if np.isinf(c.steps.value) for e in _losses(c)):
        sentences.append(
            "unlimited steps: the limit of this law has no band, because laws that fit about as well inside the "
            "measured range, or its own draws, have no such limit"
        )
    near = measured_near(fit, best, output, level)
    sentences += near.sentences
    if not fit.draws:
        sentences.append(f"this law has no intervals, so nothing here has a band: {fit.no_bands}")
    ends = reached, best, measured, sentences, matters
    return Plan(
        fit.label, output, level, fit.confidence, floor, *ends, places=list(near.places), crossing=near.crossing
    )


def _losses(choice: Choice) -> tuple[Estimate, Estimate]:
    return choice.finetune_loss, choice.forgetting_loss


def _never(output: str, level: float, choices: Sequence[Choice], every: Sequence[Choice], compared: int) -> list[str]:
    """Sentences on choices left out because they pass the level before the first step, or never."""
    early, never = compared - len(choices), len(choices) - len(every)
    out = []
    if early:
        of = f"{early} of {several(compared, 'choice')}"
        verb, are = ("spends", "is") if early == 1 else ("spend", "are")
        passed = (
            f"{verb} this budget" if output == "forgetting_loss" else f"{are} below a fine-tuning loss of {level:.4g}"
        )
        out.append(f"{of} {passed} before the first step; {'it is' if early == 1 else 'they are'} left out")
    if never:
        verb = "reaches" if never == 1 else "reach"
        left = "it is" if never == 1 else "they are"
        said = f"{never} of {several(compared, 'choice')} never {verb} a fine-tuning loss of {level:.4g}"
        out.append(f"{said}; {left} left out")
    return out


def _far(fit: Fit, choice: Choice) -> bool:
    """Whether the number of steps is outside the measured range by more than the factor FAR; not if unlimited."""
    low, high = fit.measured_range["step"]
    return choice.steps.value < low / FAR or FAR * high < choice.steps.value < np.inf


def _left_out(
    fit: Fit, output: str, level: float, every: Sequence[Choice], kept: Sequence[Choice], compared: int
) -> list[str]:
    """Sentences on choices left out because they are too far outside the measured range; empty if there are none."""
    left = [c.steps.value for c in every if c not in kept]
    if not left:
        return []
    low, high = fit.measured_range["step"]
    most = several(max(left), "step")
    ends = f"{min(left):,.0f} to {most}" if round(min(left)) < round(max(left)) else most
    said = (
        f"outside the range: {len(left)} of {several(compared, 'choice')} would take {ends}, but {low:g} to {high:g} "
        f"were measured; {'it is' if len(left) == 1 else 'they are'} left out, because the law says nothing there"
    )
    if kept:
        return [said]
    sizes = [c.trainable_params for c in every]
    values = fit.predict(output, trainable_params=[*sizes, *sizes], step=[low] * len(sizes) + [high] * len(sizes)).value
    what = loss_name(output)
    reach = f"within the range the {what} of these choices goes from {values.min():.4g} to {values.max():.4g}"
    return [said, f"{reach}; {level:.4g} is outside"]


def _say(fit: Fit, output: str, level: float, reached: Sequence[Choice], other: str) -> tuple[list[str], bool]:
    """Sentences on whether the level can be reached and whether the rank matters; and whether it matters."""
    if not reached:
        if output == "finetune_loss":
            if (
                level
                >= fit.predict(
                    "finetune_loss", trainable_params=fit.measured_range["trainable_params"][0], step=1
                ).value
            ):
                return [f"every rank compared is below a fine-tuning loss of {level:.4g} from the first step on"], True
            limit = fit.parameters["s_ft"].value
            said = f"no rank compared reaches a fine-tuning loss of {level:.4g}; the law's limit is {limit:.4g}"
            return [said], True
        return [f"no rank compared keeps the forgetting loss at {level:.4g} for even one step"], True
    out, matters = [], True
    unlimited = [c for c in reached if not np.isfinite(c.steps.value)]
    if len(unlimited) == len(reached):
        limit = max(float(c.forgetting_loss.value) for c in reached)
        what = f"these choices never use up the budget, however long they train: the law's limit is {limit:.4g}"
        return [f"{what}, so this budget limits neither rank nor steps"], False
    if unlimited:
        spend = (
            "spends the budget, however long it trains"
            if len(unlimited) == 1
            else ("spend the budget, however long they train")
        )
        out.append(f"{len(unlimited)} of {several(len(reached), 'choice')} never {spend}")
    if fit.measured_range["trainable_params"][0] == fit.measured_range["trainable_params"][1]:
        out.append(
            "only one number of trainable parameters was measured: this fit cannot say whether another rank helps"
        )
        matters = False
    if len(reached) > 1:
        sentence, matters = _compare(fit, output, level, reached, other)
        out.append(sentence)
    return out, matters


def _compare(fit: Fit, output: str, level: float, reached: Sequence[Choice], other: str) -> tuple[str, bool]:
    """A sentence on whether the best and the worst rank differ, from draws of their difference; and whether they do."""
    ordered = sorted(reached, key=lambda c: float(getattr(c, other).value))
    spread = float(getattr(ordered[-1], other).value - getattr(ordered[0], other).value)
    surface = surface_of(fit)
    outside = ordered[0].extrapolated or ordered[-1].extrapolated
    best, worst = (
        surface.drawn_losses(
            c.trainable_params,
            surface.drawn_steps(c.trainable_params, output, level, outside=outside),
            other,
            outside=outside,
        )
        for c in (ordered[0], ordered[-1])
    )
    with np.errstate(invalid="ignore"):  # two losses without a limit: their difference is unknown
        difference = band(fit, spread, worst - best)
    what = loss_name(other)
    if np.isnan(difference.low) and spread > _negligible(fit, other):
        said = f"{what} differs by {spread:.2g} nats/token between best and worst by this law's estimates alone"
        without = "intervals" if fit.no_bands else "a band of the difference"
        return f"{said}; without {without} it is unclear whether the choice matters", False
    unclear = np.isfinite(difference.low) and difference.low <= 0
    if not unclear and spread > _negligible(fit, other):
        return f"the choice matters: {what} differs by {spread:.2g} nats/token between best and worst", True
    why = "a difference that is not clear from the fit" if unclear else "too little to matter"
    every = "both" if len(reached) == 2 else f"all {len(reached)}"
    said = (
        f"no choice of rank and steps helps: {every} end within {spread:.2g} nats/token of {what}, {why}; "
        "to forget less at this fine-tuning loss, change the method (replay, regularisation, merging), not the rank"
    )
    return said, False


def _negligible(fit: Fit, output: str) -> float:
    """The largest difference of an output, in nats/token, that does not matter."""
    corners = _corners(fit, output)
    return max(SMALL * float(np.ptp(corners)), ROUNDING * float(np.max(np.abs(corners))))


def measured_spread(fit: Fit, output: str) -> float:
    """Largest minus smallest value of an output at the corners of the measured range, nats/token."""
    return float(np.ptp(_corners(fit, output)))


def _corners(fit: Fit, output: str) -> Array:
    corners = [(p, n) for p in fit.measured_range["trainable_params"] for n in fit.measured_range["step"]]
    return fit.predict(output, trainable_params=[p for p, _ in corners], step=[n for _, n in corners]).value

"""Measured runs near a choice of a plan: do they contradict the law there?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from forgetting.analysis.fit import Fit
from forgetting.analysis.fit.places import STEP, Place, places_of
from forgetting.analysis.plan.result import Choice
from forgetting.display.numbers import number, several
from forgetting.measuring.estimate import holm

PARAMS = "trainable_params"
SMALL = 0.05
"""Differences below this share of a loss's measured range do not matter in practice."""


@dataclass(frozen=True)
class Measured:
    """Measured runs near a choice, tested against the law.

    Attributes:
        places: the tests at the measured steps before and after the choice, with `p_holm` corrected over these tests.
        crossing: if a test contradicts the law, the measured steps between which runs with the choice's number of
            parameters pass the level; (None, step) if they pass it before the first measured step; else None.
        sentences: sentences on tests that contradict the law, or that are missing; may be empty.
    """

    places: tuple[Place, ...] = ()
    crossing: tuple[float | None, float] | None = None
    sentences: tuple[str, ...] = ()


def measured_near(fit: Fit, choice: Choice | None, output: str, level: float) -> Measured:
    """Test whether measured runs contradict the law near a choice.

    At the measured steps before and after the choice, this tests the mean of the runs with its number of parameters, or
    of all runs if these are too few. The p values are corrected together (Holm 1979).

    Args:
        fit: the law of the plan.
        choice: the best or recommended choice; None if there is none.
        output, level: the loss that the plan holds, and its value in nats/token.
    """
    if choice is None or not np.isfinite(choice.steps.value):
        return Measured()
    every = places_of(fit.diagnostics)
    around = _around(every, choice)
    near = [one for one in every if one.x[STEP] in around and _is_exactly(one, choice)]
    near = near or [one for one in every if one.x[STEP] in around and one.x.keys() == {STEP}]
    adjusted = holm([one.p for one in near])
    near = [replace(one, p_holm=p) for one, p in zip(near, adjusted, strict=True)]
    wrong = [one for one in near if one.contradicts]
    if not wrong:
        return Measured(tuple(near), sentences=tuple(_unchecked(fit, choice)))
    worst = min(wrong, key=lambda one: one.p_holm)
    own = "this rank" if choice.rank else "this many parameters"
    whose = own if PARAMS in worst.x else "the study"
    mean = f"{number(worst.mean)} ± {number(worst.se, 2)}"
    said = (
        f"measured runs contradict the law near {_named(choice)}: at step {worst.x[STEP]:g}, "
        f"{several(worst.runs, 'run')} of {whose} have a mean {loss_name(worst.output)} of "
        f"{mean}, and the law says {number(worst.law)} (p = {worst.p_holm:.1g}); trust the measured runs"
    )
    crossing = _crossing([one for one in every if one.output == output and _is_exactly(one, choice)], level)
    if crossing is not None:
        first, then = crossing
        who, what = f"runs of {own}", f"a {loss_name(output)} of {number(level)}"
        said += (
            f"; {who} are past {what} at step {then:g}, the first measured"
            if first is None
            else f"; {who} pass {what} between steps {first:g} and {then:g}"
        )
    return Measured(tuple(near), crossing, (said,))


def loss_name(output: str) -> str:
    """An output of a law in words."""
    return output.replace("_", " ").replace("finetune", "fine-tuning")


def _named(choice: Choice) -> str:
    what = f"rank {choice.rank:g}" if choice.rank is not None else f"{choice.trainable_params:,.0f} parameters"
    return f"{what}, {several(choice.steps.value, 'step')}"


def _around(every: list[Place], choice: Choice) -> set[float]:
    """The last measured step up to that of a choice, and the first from there on."""
    steps = {one.x[STEP] for one in every}
    before = [step for step in steps if step <= choice.steps.value]
    after = [step for step in steps if step >= choice.steps.value]
    return {*([max(before)] if before else []), *([min(after)] if after else [])}


def _is_exactly(one: Place, choice: Choice) -> bool:
    """Whether a place is a step of runs with a choice's number of parameters."""
    return one.x.keys() == {STEP, PARAMS} and bool(np.isclose(one.x[PARAMS], choice.trainable_params, rtol=1e-6))


def _unchecked(fit: Fit, choice: Choice) -> list[str]:
    """A sentence if too few steps were measured to test the law between them."""
    steps = fit.diagnostics.get("few_steps", [])
    if not steps or choice.steps.value in steps:
        return []
    named = ", ".join(f"{step:g}" for step in steps)
    return [
        f"only steps {named} were measured, too few to test the law between them; measure more often "
        "(a study's --measure-every) before relying on the band of the mean"
    ]


def _crossing(own: list[Place], level: float) -> tuple[float | None, float] | None:
    """The measured steps between which the means of runs pass a level; (None, step) if before the first; else None."""
    path = sorted((one.x[STEP], one.mean) for one in own)
    for (step, value), (after, other) in pairwise(path):
        if min(value, other) <= level <= max(value, other):
            return step, after
    rising = bool(path) and path[-1][1] > path[0][1]
    return (None, path[0][0]) if path and (path[0][1] > level) == rising else None

"""Chooses the laws to predict and plan with in a study that varied mitigations, and the best plan over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from forgetting.analysis.fit import Fit
from forgetting.analysis.plan.cost import Cost
from forgetting.analysis.plan.frontier import plan_budget, plan_target
from forgetting.analysis.plan.mitigated import plan_mitigated
from forgetting.analysis.plan.result import MitigatedPlan, Plan
from forgetting.analysis.plan.source import pick
from forgetting.errors import UsageError
from forgetting.store.axes import AXES, Axis

Along = Mapping[str, list[float]]
"""The given values of options, by mitigation."""


def one_at_most(along: Along) -> Along:
    """The values, if at most one mitigation has a value other than 0.

    Raises:
        UsageError: several mitigations have.
    """
    if len(used := [AXES[name].flag for name, values in along.items() if any(values)]) > 1:
        raise UsageError(f"{' and '.join(used)}: no law describes runs with both; give one of them")
    return along


def asked_along(along: Along, given: Mapping[str, Any]) -> Axis | None:
    """The option that a prediction is over: the one with a value other than 0, else the first given; None without."""
    named = [name for name, axis in AXES.items() if name in along or axis.column in given]
    used = [name for name in named if any(along.get(name, [1.0]))]
    return AXES[(used or named)[0]] if named else None


@dataclass(frozen=True)
class Asked:
    """A request for a plan.

    Attributes:
        budget, target: budget of forgetting or target fine-tuning loss, in nats/token; one of the two is None.
        floor: forgetting loss of the base model itself, in nats/token; None for the study's.
        grid: arguments for the ranks or trainable parameters.
        along: given values of mitigations' options.
        max_steps: limit of a run's steps; None for the most measured steps.
        next_run: whether candidates for the next run are wanted.
    """

    budget: float | None
    target: float | None
    floor: float | None
    grid: Mapping[str, Any]
    along: Along
    max_steps: float | None
    next_run: bool

    def plan(self, laws: Mapping[str, Fit], cost_of: Callable[[Fit, Axis | None], Cost | None]) -> tuple[Fit, Plan]:
        """The law and the plan of one data set; if several mitigations may be used, those with the lowest loss.

        Raises:
            UsageError: no such law, a next run with a mitigation, or as `plan_budget`, `plan_target`, `plan_mitigated`.
        """
        tried = []
        for axis in self._axes(laws):
            law = pick(laws, None, wants_surface=True, along=axis)
            tried.append((law, self._along(law, cost_of(law, axis))))
        return _better(tried)

    def _axes(self, laws: Mapping[str, Fit]) -> Sequence[Axis | None]:
        """The options to plan over, each in a plan of its own; None stands for the law of plain runs."""
        if used := [AXES[name] for name, values in self.along.items() if any(values)]:
            if self.next_run:
                raise UsageError(
                    f"next_run (--next-run) only plans runs without mitigations; leave out {used[0].flag}, or give 0"
                )
            return used
        left = [] if self.next_run else [axis for name, axis in AXES.items() if name in laws and name not in self.along]
        return left or [None]

    def _along(self, law: Fit, cost: Cost | None) -> Plan:
        how: dict[str, Any] = {**self.grid, "floor": self.floor, "cost": cost}
        if law.law in AXES:
            more: dict[str, Any] = {"settings": self.along.get(law.law), "max_steps": self.max_steps}
            return plan_mitigated(law, budget=self.budget, target=self.target, **more, **how)
        if self.budget is not None:
            return plan_budget(law, self.budget, **how)
        return plan_target(law, self.target or 0.0, **how)


def _better(tried: Sequence[tuple[Fit, Plan]]) -> tuple[Fit, Plan]:
    """The plan whose best choice has the lowest loss, with sentences on what the other plans reach."""

    def asked(pair: tuple[Fit, Plan]) -> float:
        best = pair[1].best
        loss = None if best is None else best.finetune_loss if pair[1].output == "forgetting" else best.forgetting
        return np.inf if loss is None else loss.value

    if len(tried) == 1:
        return tried[0]
    law, made = min(tried, key=asked)
    others = [other.instead() for _, other in tried if other is not made and isinstance(other, MitigatedPlan)]
    return law, replace(made, sentences=[*made.sentences, *others])

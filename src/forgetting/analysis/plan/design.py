"""How sure a law would be of the forgetting loss at one place, were certain runs measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forgetting.analysis.fit import Fit
from forgetting.analysis.fit.information import Information, derivatives
from forgetting.analysis.fit.objective import Objective
from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.laws.base import Array
from forgetting.analysis.plan.next_run import noise_of
from forgetting.analysis.plan.surface import surface_of

OUTPUT = "forgetting_loss"


class Design:
    """The standard error of the forgetting loss at a place, to first order in the law's parameters.

    It is that of least squares on the rows of a design, with noise as the fit's residuals show it: an offset of each
    run, and noise of each row (a c-optimal design minimises it: Atkinson, Donev & Tobias 2007).
    """

    def __init__(self, fit: Fit, params: float, step: float, *, few: bool = False) -> None:
        """Take the law as it stands.

        Args:
            fit: a `shifted_power` law of a study's runs.
            params, step: the place.
            few: there are too few runs to show how they differ: a run's offset is taken as large as a row's noise.
        """
        surface = surface_of(fit)
        self.law, self.theta = surface.law, surface.theta[0]
        noise = noise_of(fit)
        self.offset = [max(pair) for pair in zip(noise.offset, noise.within, strict=True)] if few else noise.offset
        self.within = noise.within
        place = self._problem(params, [step])
        self.free = place.movable(self.theta)
        self.direction = derivatives(place, self.theta)[self.law.outputs.index(OUTPUT), 0]

    def _problem(self, params: float, steps: Sequence[float]) -> Problem:
        x = {"trainable_params": np.full(len(steps), params), "step": np.array(steps, dtype=float)}
        return Problem(self.law, x, Objective())

    def error(self, sizes: Sequence[float], steps: Sequence[float]) -> float:
        """The standard error with one run of each number of trainable parameters, all measured at the same steps."""
        size = len(self.theta)
        none: Array = np.zeros((len(self.law.outputs), size, size))
        known = Information(none, none)
        made = {params: derivatives(self._problem(params, steps), self.theta) for params in set(sizes)}
        for params in sizes:
            known = known.plus(made[params])
        return float(np.sqrt(known.variance(self.direction, self.free, self.offset, self.within)))

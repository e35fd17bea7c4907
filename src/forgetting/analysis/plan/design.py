"""The standard error that a law would have at one point if given runs were measured."""

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
    """The standard error of the forgetting loss at a point, to first order in the law's parameters.

    It is the error of a least-squares fit to the rows of a design, with noise estimated from the residuals of the given
    fit: an offset per run and noise per row. A c-optimal design minimises it (Atkinson, Donev & Tobias 2007).
    """

    def __init__(self, fit: Fit, params: float, step: float, *, few: bool = False) -> None:
        """Linearise the law at its fit.

        Args:
            fit: a `shifted_power` law fitted to a study's runs.
            params, step: trainable parameters and steps of the point.
            few: whether there are too few runs to estimate how they differ; a run's offset is then assumed to be at
                least as large as a row's noise.
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
        """The standard error (nats/token) for one run per entry of `sizes` (trainable parameters), each measured at
        `steps`.
        """
        size = len(self.theta)
        none: Array = np.zeros((len(self.law.outputs), size, size))
        known = Information(none, none)
        made = {params: derivatives(self._problem(params, steps), self.theta) for params in set(sizes)}
        for params in sizes:
            known = known.plus(made[params])
        return float(np.sqrt(known.variance(self.direction, self.free, self.offset, self.within)))

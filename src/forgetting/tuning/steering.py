"""The weight of a penalty, steered so that a run's forgetting ends at a budget. Numbers only; no model.

A penalty of weight w lowers log forgetting by POWER log(1 + w / SCALE), not at once but with a lag of LAG update steps,
the memory of Adam's momentum. At each measurement what the weights so far have done is taken off, what is left (the
curve of a run without penalty) is forecast (`measuring.forecast`), and the weight moves by a share of what would take
the end to the budget. The three numbers are from runs of the miniature; they need not be right elsewhere, since what
they miss is in the curve that is forecast anew at each measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from ..measuring.forecast import Forecast, forecast

SHORTEST = 8
"""Update steps of a run that can be steered."""
FIRST, LEAST, MOST = 0.05, 0.001, 30.0
"""The weight in the beginning, and its bounds. Below the least one a penalty does nothing that can be measured."""
POWER, SCALE = 0.43, 0.02
"""KL at 0.03, 0.1 and 0.3 on instructions, rank 64, seed 0: forgetting of 0.21, 0.13, 0.08; 0.29 without."""
LAG = 12.0
GAIN = 0.8
"""Share of the correction that is made at each measurement; what is left is made at the next one."""
STRIDE = math.log(2.0)
"""The logarithm by which the weight moves at most at a measurement: a forecast that is far off does little harm."""
BEGIN = 1 / 3
"""Share of the run after which the weight moves: before, the curve is that of the warm-up."""
WHOLE = (0.5, 0.8, 0.9)
"""Shares of the run after which the whole text is measured."""
MARGIN = 0.1
"""Relative distance from the budget that counts as landed."""


def grid(steps: int) -> list[int]:
    """Update steps after which forgetting is measured: every twentieth of the run; in its last fifth every fiftieth."""
    shares = [i / 20 for i in range(1, 17)] + [0.8 + i / 50 for i in range(1, 10)]
    return sorted({round(share * steps) for share in shares} - {0, steps})


@dataclass
class Steering:
    """The weight of one run, from its measurements so far.

    Attributes:
        budget: excess forgetting that the run is to end with, nats/token.
        steps: update steps of the run.
        moves: update steps after which the weight moved, and to which one.
        points: step, forgetting of the sample and its standard error of each measurement.
        ratio: forgetting on the whole text over that on the sample, as last measured.
        said: what was noticed, once each: that the budget cannot be held, or that nothing is to be held back.
    """

    budget: float
    steps: int
    moves: list[tuple[int, float]] = field(default_factory=lambda: [(0, FIRST)])
    points: list[tuple[int, float, float | None]] = field(default_factory=list)
    ratio: float = 1.0
    said: dict[str, str] = field(default_factory=dict)

    def due(self, step: int) -> bool:
        """Whether forgetting is to be measured after `step` update steps."""
        return step in grid(self.steps) and all(step > point[0] for point in self.points)

    @property
    def weight(self) -> float:
        """Of the penalty now."""
        return self.moves[-1][1]

    def whole_due(self, step: int) -> bool:
        """Whether the whole text is to be measured beside the sample: after a half, four fifths and nine tenths."""
        later = ([at for at in grid(self.steps) if at >= share * self.steps] for share in WHOLE)
        return step in {steps[0] for steps in later if steps}

    def measured(self, step: int, forgetting: float, error: float | None, whole: float | None = None) -> Forecast:
        """Take a measurement, and move the weight.

        Args:
            step: finished update steps.
            forgetting: on the sample.
            error: its standard error.
            whole: forgetting on the whole text, where it was measured, too.

        Returns:
            The forecast of the end, were the weight to stay as it was.
        """
        self.points.append((step, forgetting, error))
        if whole is not None and whole > 0 and forgetting > 0:
            self.ratio = whole / forgetting
        lifts = [self.ratio * math.exp(-self._held(at)) for at, _, _ in self.points]
        steps = [at for at, _, _ in self.points]
        values = [value * lift for (_, value, _), lift in zip(self.points, lifts, strict=True)]
        errors = [error and error * lift for (_, _, error), lift in zip(self.points, lifts, strict=True)]
        free = forecast(steps, values, errors, end=self.steps)
        found = _scaled(free, math.exp(self._held(self.steps)), self.budget)
        if free.value is not None and step >= BEGIN * self.steps:
            self.moves.append((step, self._solved(step, free.value)))
        self._notice(step, forgetting * self.ratio, found)
        return found

    def _held(self, step: int) -> float:
        """What the weights so far have done to log forgetting after `step` steps."""
        held, until = 0.0, [at for at, _ in self.moves[1:]] + [step]
        for (begin, weight), end in zip(self.moves, until, strict=True):
            stay = math.exp(-max(min(end, step) - begin, 0) / LAG)
            held = stay * held + (1 - stay) * _effect(weight)
        return held

    def _solved(self, step: int, free: float) -> float:
        """The weight, moved towards the one that takes a run which ends at `free` without it to the budget."""
        stay = math.exp(-(self.steps - step) / LAG)
        wanted = (math.log(self.budget / free) - stay * self._held(step)) / (1 - stay)
        weight = min(max(SCALE * math.expm1(min(-wanted / POWER, 50.0)), LEAST), MOST)
        move = GAIN * math.log(weight / self.weight)
        return min(max(self.weight * math.exp(min(max(move, -STRIDE), STRIDE)), LEAST), MOST)

    def _notice(self, step: int, forgetting: float, found: Forecast) -> None:
        """Say what the weight cannot do."""
        ends = f"at step {step} of {self.steps}: forgetting is {forgetting:.3g} nats/token"
        if step <= self.steps / 10 and forgetting > self.budget:
            self.said.setdefault("early", f"{ends}, above the budget of {self.budget:g} in the first tenth of the run")
        if found.low is None or found.high is None:
            return
        if 1.5 * self.weight >= MOST and found.low > self.budget:
            said = f"{ends}, and ends above the budget of {self.budget:g} though the penalty has its largest weight"
            self.said.setdefault("above", f"{said} ({MOST:g}); give a larger budget, or train less")
        if self.weight <= 1.5 * LEAST and found.high < (1 - MARGIN) * self.budget:
            said = f"{ends}, and ends below the budget of {self.budget:g} though the penalty has its smallest weight"
            self.said.setdefault("below", f"{said} ({LEAST:g}): nothing needs to be held back")

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to keep; plain numbers and texts, which JSON gives back exactly."""
        points, moves = ([[*each] for each in part] for part in (self.points, self.moves))
        return {"points": points, "moves": moves, "ratio": self.ratio, "said": dict(self.said)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self.moves = [(int(step), float(weight)) for step, weight in state["moves"]]
        self.points = [(int(step), float(value), error) for step, value, error in state["points"]]
        self.ratio, self.said = float(state["ratio"]), dict(state["said"])


def _effect(weight: float) -> float:
    """What a weight does to log forgetting in the end."""
    return -POWER * math.log1p(weight / SCALE)


def _scaled(free: Forecast, share: float, budget: float) -> Forecast:
    """The forecast of forgetting that is a share of the one given."""
    if free.value is None or free.low is None or free.high is None:
        return replace(free, budget=budget)
    return replace(free, value=free.value * share, low=free.low * share, high=free.high * share, budget=budget)

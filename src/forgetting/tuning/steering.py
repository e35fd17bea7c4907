"""The weight of a penalty, steered so that a run's forgetting ends at a budget. Numbers only; no model.

A penalty of weight w lowers log forgetting by POWER log(1 + w / SCALE), with a lag. At each measurement, the effect of
the weights so far is subtracted, the remaining curve (that of a run without penalty) is forecast
(`measuring.forecast`), and the weight changes to the one that, kept to the end, makes the run end at the budget. The
three numbers are from runs of the miniature. They need not be exact elsewhere, since their errors become part of the
curve that is forecast again at each measurement. Only the lag matters: if it is too short, the weight changes again
before its last change has acted, and forgetting oscillates around the budget; if it is too long, it does little harm.

Time is the sum of learning rates, in units of the largest, since an update step's change is proportional to its rate.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..measuring.forecast import PLAIN, SURE, Forecast, forecast

log = logging.getLogger(__name__)
SHORTEST = 8
"""Update steps of a run that can be steered."""
MOST = 30.0
"""The largest weight; the smallest, and the first, is 0."""
POWER, SCALE, LAG = 0.8, 0.047, 0.55
"""Fitted to 16 steered runs and 3 with a constant weight, of ranks 8 and 64, both sets, seeds 0 and 1 of the miniature,
against the curves of the same runs without penalty. LAG is a share of the run: in simulated runs of 300
steps, a shorter one ends as close to the budget if the weight acts as fast as that, and much farther if not."""
STRIDE = math.log(2.0)
"""The most that log(1 + w / SCALE) changes at a measurement, so that a wrong forecast does little harm."""
BEGIN = 1 / 3
"""Share of the run after which the weight changes. Before that, the curve shows the warm-up. There is time to return
from above the budget, but none to return from far below it, if the run would end near it without a penalty."""
WHOLE = (0.33, 0.5, 0.65, 0.8, 0.9, 0.96)
"""Shares of the run after which the whole text is measured."""
MARGIN = 0.1
"""Relative distance from the budget that counts as reached."""


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
        rates: [steps] learning rates, in any unit; None for a constant one.
        moves: update steps after which the weight changed, and its new values.
        points: step, forgetting on the sample, and its standard error, for each measurement.
        ratio: forgetting on the whole text over that on the sample, as last measured where the sample's was not noise.
        said: the warnings so far, one of each kind.
    """

    budget: float
    steps: int
    rates: Sequence[float] | None = None
    moves: list[tuple[int, float]] = field(default_factory=lambda: [(0, 0.0)])
    points: list[tuple[int, float, float | None]] = field(default_factory=list)
    ratio: float = 1.0
    said: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Set the clock, [steps + 1]: the sum of learning rates before each step, as a share of the run's."""
        rates = [*self.rates] if self.rates is not None and max(self.rates) > 0 else [1.0] * self.steps
        sums = [*itertools.accumulate(rates, initial=0.0)]
        self.clock = [at / sums[-1] for at in sums]
        self.warm = rates.index(max(rates))

    def due(self, step: int) -> bool:
        """Whether forgetting is to be measured after `step` update steps."""
        return step in grid(self.steps) and all(step > point[0] for point in self.points)

    @property
    def weight(self) -> float:
        """The penalty's current weight."""
        return self.moves[-1][1]

    def whole_due(self, step: int) -> bool:
        """Whether the whole text is to be measured as well as the sample."""
        later = ([at for at in grid(self.steps) if at >= share * self.steps] for share in WHOLE)
        return step in {steps[0] for steps in later if steps}

    def measured(self, step: int, forgetting: float, error: float | None, whole: float | None = None) -> Forecast:
        """Record a measurement, and change the weight.

        Args:
            step: finished update steps.
            forgetting: on the sample, nats/token.
            error: its standard error.
            whole: forgetting on the whole text; None if it was not measured.

        Returns:
            The forecast of forgetting at the end, if the weight had stayed as it was.
        """
        self.points.append((step, forgetting, error))
        if whole is not None and whole > 0 and forgetting > SURE * (error or 0.0):  # not a ratio to noise
            self.ratio = whole / forgetting
        free = self._free()
        found = _scaled(free, math.exp(self._held(self.steps)), self.budget)
        self._notice(step, forgetting * self.ratio, error, free)
        if free.value is not None and self.clock[step] >= BEGIN:
            self.moves.append((step, self._solved(step, free.value)))
        return found

    def _free(self) -> Forecast:
        """The forecast of the end without a penalty, from the measurements after the warm-up."""
        points = [point for point in self.points if point[0] >= self.warm] or self.points[-1:]
        lifts = [self.ratio * math.exp(-self._held(at)) for at, _, _ in points]
        values = [value * lift for (_, value, _), lift in zip(points, lifts, strict=True)]
        errors = [error and error * lift for (_, _, error), lift in zip(points, lifts, strict=True)]
        steps = [at for at, _, _ in points]
        return forecast(steps, values, errors, end=self.steps, rates=self.rates, prior=PLAIN)

    def _held(self, step: int) -> float:
        """The effect of the weights so far on log forgetting after `step` steps."""
        held, until = 0.0, [at for at, _ in self.moves[1:]] + [step]
        for (begin, weight), end in zip(self.moves, until, strict=True):
            stay = self._stay(min(begin, step), min(end, step))
            held = stay * held - (1 - stay) * POWER * math.log1p(weight / SCALE)
        return held

    def _stay(self, begin: int, end: int) -> float:
        """The share of an earlier effect that remains after the steps from `begin` to `end`."""
        return math.exp((self.clock[begin] - self.clock[end]) / LAG)

    def _solved(self, step: int, free: float) -> float:
        """The next weight: towards the one that ends the run at the budget, by at most STRIDE.

        Args:
            step: finished update steps.
            free: forgetting at the end without a penalty, nats/token.
        """
        stay, now = self._stay(step, self.steps), math.log1p(self.weight / SCALE)
        if stay == 1:
            return self.weight
        wanted = (stay * self._held(step) - math.log(self.budget / free)) / (1 - stay) / POWER
        return min(SCALE * math.expm1(max(min(max(wanted, now - STRIDE), now + STRIDE), 0.0)), MOST)

    def _notice(self, step: int, forgetting: float, error: float | None, free: Forecast) -> None:
        """Warn of what the weight cannot do, as soon as it is known."""
        now = f"at step {step} of {self.steps}: forgetting is {forgetting:.3g} nats/token"
        of = f"the budget of {self.budget:g}"
        if step <= self.steps / 10 and forgetting > self.budget:
            self._say("early", f"{now}, above {of} in the first tenth of the run")
        if step <= self.steps / 10 and error is not None and forgetting <= self.budget < SURE * error:
            said = f"{now} with a standard error of {error:.2g}: {of} cannot be distinguished from zero"
            self._say("noise", f"{said}; measure more tokens, or give a budget above {SURE * error:.2g}")
        if free.low is None or free.high is None:
            return
        from_here = math.exp(self._stay(step, self.steps) * self._held(step))
        reach = POWER * math.log1p(MOST / SCALE) * (1 - math.exp((max(self.clock[step], BEGIN) - 1) / LAG))
        if free.low * from_here * math.exp(-reach) > (1 + MARGIN) * self.budget:
            said = f"{now}, and ends above {of} even with the largest weight from here on ({MOST:g})"
            self._say("above", f"{said}; give a larger budget, or train less")
        if self.clock[step] >= BEGIN and free.high * from_here < (1 - MARGIN) * self.budget:
            said = f"{now}, and ends below {of} even without a penalty from here on"
            self._say("below", f"{said}: no penalty is needed")

    def ended(self, step: int, forgetting: float, error: float | None) -> None:
        """Warn if the run missed its budget by more than MARGIN.

        Args:
            step: update steps of the run when it ended.
            forgetting: on the whole text, nats/token; NaN if training diverged.
            error: its standard error; None for a single document.
        """
        off = forgetting / self.budget - 1
        if abs(off) <= MARGIN:
            return
        se = "unknown standard error" if error is None else f"standard error {error:.2g}"
        side, advice = "below", "there is room to train longer or with a larger learning rate"
        if off > 0:
            side, advice = "above", "train less, give a larger budget, or weaken the adapter with `forgetting scale`"
        verdict = f", {abs(off):.0%} {side} the budget of {self.budget:g}; {advice}"
        if not math.isfinite(forgetting):
            verdict = ": training diverged; lower the learning rate"
        now = f"the run ended at step {step} of {self.steps} with forgetting of {forgetting:.3g} nats/token ({se})"
        log.warning("%s%s", now, verdict)

    def _say(self, kind: str, text: str) -> None:
        """Warn, once of each kind."""
        if kind not in self.said:
            self.said[kind] = text
            log.warning("%s", text)

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint: plain numbers and texts, which JSON preserves exactly."""
        points, moves = ([[*each] for each in part] for part in (self.points, self.moves))
        return {"points": points, "moves": moves, "ratio": self.ratio, "said": dict(self.said)}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self.moves = [(int(step), float(weight)) for step, weight in state["moves"]]
        self.points = [(int(step), float(value), error) for step, value, error in state["points"]]
        self.ratio, self.said = float(state["ratio"]), dict(state["said"])


def _scaled(free: Forecast, share: float, budget: float) -> Forecast:
    """A forecast multiplied by a share, with a budget."""
    if free.value is None or free.low is None or free.high is None:
        return replace(free, budget=budget)
    return replace(free, value=free.value * share, low=free.low * share, high=free.high * share, budget=budget)

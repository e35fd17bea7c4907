"""Solves the shifted power law for steps, in closed form, and for all bootstrap draws at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forgetting.analysis.fit import Estimate, Fit
from forgetting.analysis.fit.bootstrap import finite_interval
from forgetting.analysis.fit.rivals import Rival, own_share
from forgetting.analysis.laws import LAWS
from forgetting.analysis.laws.base import Array
from forgetting.analysis.laws.shifted_power import Centred, centred
from forgetting.errors import UsageError

LAW = LAWS["shifted_power"]


def need_surface(fit: Fit) -> None:
    """Refuse any law but `shifted_power`, because plans need both losses over P and N.

    Raises:
        UsageError: another law.
    """
    if fit.law != LAW.name:
        raise UsageError(f"a plan needs law '{LAW.name}' (both losses over P and N), not '{fit.law}'")


@dataclass(frozen=True)
class Surface:
    """Both losses over P and N, in fitted coordinates.

    Attributes:
        law: the law in fitted coordinates.
        theta: [1, K] the best fit.
        draws: [B, K] bootstrap refits; [0, K] if the fit has no intervals.
        rivals: laws whose draws are included in bands outside the measured range.
    """

    law: Centred
    theta: Array
    draws: Array
    rivals: tuple[Rival, ...] = ()

    def drawn_steps(self, params: float, output: str, level: float, *, outside: bool) -> Array:
        """[B] draws of the steps at which an output reaches a level; with `outside`, rivals contribute their share."""
        own = self.steps_at(self.draws, params, output, level)
        if not outside:
            return own
        up = self.law.signs[self.law.outputs.index(output)] < 0
        at = {"trainable_params": params}
        others = [r.law.solve(r.draws, output, level, "step", at, up=up) for r in self.rivals]
        return np.concatenate([own[: own_share(len(own), self.rivals)], *others])

    def drawn_losses(self, params: float, steps: Array, output: str, *, outside: bool) -> Array:
        """[B] draws of a loss, each at its own number of steps [B], from `drawn_steps`."""
        if not outside:
            return self.loss_at(self.draws, params, steps, output)
        count = own_share(len(self.draws), self.rivals)
        ends = np.cumsum([count, *(len(r.draws) for r in self.rivals)])
        parts = [self.loss_at(self.draws[:count], params, steps[:count], output)]
        for rival, begin, end in zip(self.rivals, ends[:-1], ends[1:], strict=True):
            x = {"trainable_params": np.full(end - begin, params), "step": steps[begin:end]}
            parts.append(rival.law.at_each(rival.draws, output, x))
        return np.concatenate(parts)

    def steps_at(self, theta: Array, params: float, output: str, level: float) -> Array:
        """[S] steps at which an output reaches a level; infinite if it never does."""
        return self.law.steps_at(theta, params, output, level)

    def loss_at(self, theta: Array, params: float, steps: Array, output: str) -> Array:
        """[S] losses for [S, K] parameters, each at its own number of steps (infinite for the limit)."""
        out = np.empty(theta.shape[0])
        which = self.law.outputs.index(output)
        with np.errstate(all="ignore"):
            for i in range(theta.shape[0]):
                x = {"trainable_params": np.array([params]), "step": np.array([steps[i]])}
                out[i] = self.law.values(theta[i : i + 1], x)[0, which, 0]
        return out


def surface_of(fit: Fit) -> Surface:
    """The surface of a fit; parameters of published fits and of old files are converted to fitted coordinates."""
    need_surface(fit)
    inner, theta, draws = fit.model()
    if isinstance(inner, Centred):
        return Surface(inner, theta[None], draws, fit.rivals)
    middle = [float(np.mean(np.log(fit.measured_range[name]))) for name in inner.variable_names]
    centre = (middle[0], middle[1])
    law = Centred(LAW.outputs, (1, -1), centre)
    return Surface(law, centred(theta[None], centre), centred(draws, centre), fit.rivals)


def band(fit: Fit, value: float, draws: Array) -> Estimate:
    """A value with the interval of its [B] draws; NaN if there are none or too many are not finite."""
    if not draws.size or not np.isfinite(value):
        return Estimate(value)
    low, high, _ = finite_interval(np.array([value]), draws[:, None], fit.confidence, fit.widen)
    return Estimate(value, float(low[0]), float(high[0]))


def steps_band(fit: Fit, value: float, draws: Array) -> Estimate:
    """Steps with the interval of their [B] draws, computed in logarithms.

    Draws that never reach the level count as longer than all others. If they are more than the upper tail, the upper
    end is infinite. Both ends are NaN if there are no draws, or if almost none reaches the level.
    """
    if not draws.size or not np.isfinite(value):
        return Estimate(value)
    tail = (1 - fit.confidence) / 2
    with np.errstate(all="ignore"):
        points = np.sort(np.where(np.isfinite(draws), np.log(draws), np.inf))
    known, last, centre = points[np.isfinite(points)], len(points) - 1, float(np.log(value))
    if len(known) <= np.ceil(last * tail):
        return Estimate(value)
    low = centre + fit.widen * min(float(np.quantile(points, tail)) - centre, 0.0)
    if len(known) <= np.ceil(last * (1 - tail)):
        return Estimate(value, float(np.exp(low)), np.inf)
    high = centre + fit.widen * max(float(np.quantile(points, 1 - tail)) - centre, 0.0)
    return Estimate(value, float(np.exp(low)), float(np.exp(high)))

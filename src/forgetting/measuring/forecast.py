"""Forecasts a run's forgetting at its last step from the measurements so far, and when it exceeds a budget.

Let u be the logarithm of the sum of learning rates up to a step, relative to the largest, and F the excess forgetting:

    d log F = b du + dw,    db = k (m - b) du + dv

The slope b of log F is an Ornstein-Uhlenbeck process that returns to a level m, which differs from run to run; w and v
are Brownian motions. Measurements are log F with an error. Everything is linear and Gaussian except for one scale
factor common to all variances of a run, which is estimated from the run's own points. A Kalman filter therefore gives
the forecast in closed form, as a Student t distribution.

The time variable is the sum of learning rates instead of the step, so that a decaying schedule flattens the curve; with
a constant rate the two are proportional, apart from the warm-up.

Sources: Harvey 1989, *Forecasting, Structural Time Series Models and the Kalman Filter*, section 9.1 (continuous time);
West and Harrison 1997, *Bayesian Forecasting and Dynamic Models*, section 4.5 (unknown scale).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from ..display.numbers import number
from ..errors import UsageError

LEVEL = 0.95
SURE = 3.0
"""Number of standard errors by which forgetting must be above zero for its logarithm to be used."""
POINTS = 2000
"""Maximum number of steps at which the forecast is evaluated to find a crossing."""


@dataclass(frozen=True)
class Prior:
    """Prior of a run's curve; slopes are d log F / du, with u the log of the sum of learning rates.

    Attributes:
        first: mean and standard deviation of the slope b at the first point.
        level: mean and standard deviation over runs of the level m that the slope returns to.
        back: the rate k of that return.
        slopes: standard deviation of dv per square root of u.
        walk: standard deviation of dw per square root of u.
        scatter: standard deviation of a measurement of log F, in addition to its standard error.
        weight: degrees of freedom of the prior of the noise's scale: it counts as much as this many points of the run.
        shared: share of the standard error's variance that differs between steps; the rest is common to all steps,
            which are measured on the same documents.
    """

    first: tuple[float, float]
    level: tuple[float, float]
    back: float
    slopes: float
    walk: float
    scatter: float
    weight: float
    shared: float = 0.25


PLAIN = Prior(
    first=(2.10, 0.99),
    level=(0.218, 0.070),
    back=1.83,
    slopes=0.16,
    walk=0.033,
    scatter=0.013,
    weight=8,
)
"""For runs without mitigation (no replay, no penalty). Maximum likelihood of the final forgetting of 186 runs of the
miniature: LoRA of ranks 8 to 128 with 16 seeds on both data sets (161), full fine-tuning, fine-tuning of the top layers
only, (IA)3, LoRA of rank 192 and of the attention only (4 to 8 each); 52 to 112 steps, a constant learning rate, each
kind weighted by the square root of its number. The standard deviation of `level` is larger than the fit's 0.036, since
other recipes have other levels. docs/findings.md has the coverage of the bands on runs that were not used here."""
ANY = Prior(
    first=(-0.24, 1.00),
    level=(0.050, 0.200),
    back=2.20,
    slopes=0.36,
    walk=0.021,
    scatter=0.013,
    weight=4,
)
"""For any run: fitted to the same runs and 43 more with KL, EWC, L2-SP, a smaller learning rate (3 each), and replay
(30), whose forgetting may also decrease; hence wider. `level` is wider than the fit's 0.17 and 0.07: with a whole study
left out, bands from those two values covered too few of the runs with mitigation."""


@dataclass(frozen=True)
class Forecast:
    """A forecast of forgetting at the end of a run, from measurements up to `step`.

    Attributes:
        step: the last measured step.
        end: the last step of the run.
        value: median of the excess forgetting at the end, nats/token; None if there is no forecast.
        low: lower bound of the 95 % band, nats/token.
        high: upper bound of the 95 % band, nats/token.
        budget: allowed excess forgetting, nats/token, if given.
        chance: probability that forgetting at the end is above the budget.
        crossing: the step at which forgetting exceeds the budget, by the median or, if it already has, as measured;
            None if it does not.
        crossing_low: the step at which the upper bound exceeds the budget; None if it does not.
        crossing_high: the step at which the lower bound exceeds the budget; None if it does not.
        why: why there is no forecast; empty if there is one.
        note: what the forecast assumes, besides an unchanged recipe.
        guide: whether this is of another model than the miniature, whose runs the bands are from. They may be far off
            for other models, so the text has none.
    """

    step: int
    end: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    budget: float | None = None
    chance: float | None = None
    crossing: float | None = None
    crossing_low: float | None = None
    crossing_high: float | None = None
    why: str = ""
    note: str = ""
    guide: bool = False

    def __str__(self) -> str:
        """For example `at step 400: 0.31 [0.27, 0.36]; the budget of 0.2 is crossed at about step 190 [160, 230]`."""
        if self.value is None:
            return f"no forecast for step {self.end}: {self.why}"
        text = f"at step {self.end}: "
        if self.guide:
            text += f"about {_short(self.value)}, a rough guide"
        else:
            text += f"{_short(self.value)} [{_short(self.low)}, {_short(self.high)}]"
        if self.budget is not None:
            text += f"; the budget of {self.budget:g} {self._crossed()}"
        return text + (f" ({self.note})" if self.note else "")

    def logged(self) -> dict[str, float]:
        """The numbers for loggers, without missing ones."""
        named = {"forecast": self.value, "forecast_low": self.low, "forecast_high": self.high}
        named |= {"crossing": self.crossing, "crossing_low": self.crossing_low, "crossing_high": self.crossing_high}
        return {name: value for name, value in named.items() if value is not None}

    def _crossed(self) -> str:
        if self.crossing is not None and self.crossing <= self.step:
            return f"was crossed at about step {self.crossing:.0f}"
        if self.crossing_low is None:
            return "is not crossed"
        if self.guide:
            return "may be crossed" if self.crossing is None else f"is crossed at about step {self.crossing:.0f}"
        if self.crossing is None:
            return f"is crossed with a chance of {self.chance:.0%}, from step {self.crossing_low:.0f} on"
        last = f"after {self.end}" if self.crossing_high is None else f"{self.crossing_high:.0f}"
        return f"is crossed at about step {self.crossing:.0f} [{self.crossing_low:.0f}, {last}]"


def forecast(
    steps: Sequence[int],
    forgetting: Sequence[float],
    errors: Sequence[float | None],
    *,
    end: int,
    budget: float | None = None,
    rates: ArrayLike | None = None,
    prior: Prior | None = None,
    note: str = "",
) -> Forecast:
    """Forecast a run's forgetting at its last step.

    Args:
        steps: the measured steps, in order; step 0 is allowed and not used.
        forgetting: excess forgetting at each step, nats/token.
        errors: its standard error at each step; None if there is none.
        end: the last step of the run.
        budget: allowed excess forgetting, nats/token, to forecast when it is exceeded.
        rates: [end] the learning rate of each update step, in any unit; None means constant.
        prior: default `ANY`; `PLAIN` for a run without mitigation (no replay, no penalty).
        note: what the rates assume, in words.

    Returns:
        A forecast; if none is possible, its `why` says why.

    Raises:
        UsageError: steps that are not increasing or beyond the end, lists of different lengths, or learning rates of
            the wrong shape or below 0.
    """
    clock = _clock(steps, forgetting, errors, end, rates)
    last = int(steps[-1]) if len(steps) else 0
    none = Forecast(last, end, budget=budget, note=note)
    at, values = np.asarray(steps, int), np.asarray(forgetting, float)
    spread = np.array([math.nan if error is None else error for error in errors], float)
    known = (at > 0) & (values > SURE * np.nan_to_num(spread)) & (values > 0) & (clock[at] > 0)
    if not np.isfinite(values).all():
        return replace(none, why="training diverged")
    if not known.any() or not known[-1]:
        return replace(none, why=f"forgetting at step {last} is not yet above {SURE:g} of its standard errors")
    filtered = _filter(np.log(clock[at[known]]), values[known], np.nan_to_num(spread[known]), prior or ANY)
    value, low, high, _ = filtered.at(np.log(clock[[end]]))
    found = Forecast(last, end, float(value[0]), float(low[0]), float(high[0]), budget, note=note)
    return found if budget is None else _crossing(found, at[known], values[known], clock, filtered)


def _clock(
    steps: Sequence[int],
    forgetting: Sequence[float],
    errors: Sequence[float | None],
    end: int,
    rates: ArrayLike | None,
) -> NDArray[np.float64]:
    """[end + 1] The sum of the learning rates of the first 0, 1, ..., `end` update steps, relative to the largest."""
    if not len(steps) == len(forgetting) == len(errors):
        raise UsageError(f"forecast: {len(steps)} steps, {len(forgetting)} values, {len(errors)} errors; give one each")
    if any(b <= a for a, b in itertools.pairwise(steps)) or (len(steps) and not steps[0] >= 0):
        raise UsageError(f"forecast: the steps {[*steps]!s:.80} are not increasing from 0 on")
    if len(steps) and steps[-1] > end:
        raise UsageError(f"forecast: step {steps[-1]} was measured, after the end at step {end}")
    each = np.ones(end) if rates is None else np.asarray(rates, float)
    if each.shape != (end,) or not np.isfinite(each).all() or (each < 0).any():
        raise UsageError(f"forecast: rates have the shape {each.shape}; give one of 0 or more for each of {end} steps")
    return np.concatenate([[0.0], np.cumsum(each / max(each.max(initial=0.0), 1e-300))])


@dataclass(frozen=True)
class _Filtered:
    """The filter's state at the last point.

    Attributes:
        u: log of the sum of learning rates there.
        mean, covariance: [3], [3, 3] of (log F, slope b, level m), the covariance up to `scale`.
        noise: variance of a measurement of log F, up to `scale`.
        scale: estimated scale factor of all variances.
        freedom: its degrees of freedom.
        prior: the prior.
    """

    u: float
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    noise: float
    scale: float
    freedom: float
    prior: Prior

    def at(self, u: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """[n] median, lower and upper bound of F, and the standard deviation of its logarithm, at later u [n]."""
        logs, spreads = np.empty(len(u)), np.empty(len(u))
        for i, one in enumerate(u):
            move, noise = _transition(max(one - self.u, 0.0), self.prior)
            logs[i] = (move @ self.mean)[0]
            variance = (move @ self.covariance @ move.T + noise)[0, 0] + self.noise
            spreads[i] = math.sqrt(variance * self.scale)
        wide = float(stdtrit(self.freedom, (1 + LEVEL) / 2)) * spreads
        median, low, high = (np.exp(np.minimum(x, 700.0)) for x in (logs, logs - wide, logs + wide))
        return median, low, high, spreads


def _transition(d: float, prior: Prior) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[3, 3] The transition matrix of the state over a distance d in u, and the covariance of the added noise."""
    k, e = prior.back, math.exp(-prior.back * d)
    g = (1 - e) / k
    move = np.array([[1, g, d - g], [0, e, 1 - e], [0, 0, 1]])
    noise, diffusion = np.zeros((3, 3)), prior.slopes**2
    noise[1, 1] = diffusion * (1 - e * e) / (2 * k)
    noise[0, 1] = noise[1, 0] = diffusion * g * g / 2
    noise[0, 0] = diffusion * (d - 2 * g + (1 - e * e) / (2 * k)) / k**2 + prior.walk**2 * d
    return move, noise


def _filter(
    u: NDArray[np.float64], values: NDArray[np.float64], spread: NDArray[np.float64], prior: Prior
) -> _Filtered:
    """Kalman filter over the points; the squared standardised residuals estimate the scale of the noise."""
    logs = np.log(values)
    noise = prior.scatter**2 + prior.shared * (spread / values) ** 2
    mean = np.array([logs[0], prior.first[0], prior.level[0]])
    covariance = np.diag([noise[0], prior.first[1] ** 2, prior.level[1] ** 2])
    surprise = 0.0
    for i in range(1, len(u)):
        move, added = _transition(u[i] - u[i - 1], prior)
        mean, covariance = move @ mean, move @ covariance @ move.T + added
        variance, residual = covariance[0, 0] + noise[i], logs[i] - mean[0]
        gain = covariance[:, 0] / variance
        mean, covariance = mean + gain * residual, covariance - np.outer(gain, covariance[0])
        surprise += residual**2 / variance
    freedom = prior.weight + len(u) - 1
    scale = (prior.weight + surprise) / freedom
    return _Filtered(float(u[-1]), mean, covariance, float(noise[-1]), scale, freedom, prior)


def _crossing(
    found: Forecast, at: NDArray[np.int64], values: NDArray[np.float64], clock: NDArray[np.float64], filtered: _Filtered
) -> Forecast:
    """The forecast, with the step at which the budget is exceeded and the probability that it is at the end."""
    budget, value = found.budget, found.value
    assert budget is not None
    assert value is not None
    *_, spread = filtered.at(np.log(clock[[found.end]]))
    away = math.log(max(budget, 1e-300) / value) / max(float(spread[0]), 1e-12)
    found = replace(found, chance=1.0 - float(stdtr(filtered.freedom, away)))
    if values[-1] > budget:
        when = _first(np.concatenate([[0], at]), np.concatenate([[0.0], values]), budget)
        return replace(found, crossing=when, crossing_low=when, crossing_high=when)
    later = np.unique(np.linspace(found.step, found.end, min(found.end - found.step + 1, POINTS)).round().astype(int))
    curves = filtered.at(np.log(clock[later]))[:3]
    for curve in curves:
        curve[0] = values[-1]
    when, latest, earliest = (_first(later, curve, budget) for curve in curves)
    return replace(found, crossing=when, crossing_low=earliest, crossing_high=latest)


def _first(steps: NDArray[np.int64], curve: NDArray[np.float64], budget: float) -> float | None:
    """The first step at which a curve exceeds the budget, linear between steps; None if it never does."""
    above = np.flatnonzero(curve > budget)
    if not len(above):
        return None
    i = int(above[0])
    if i == 0:
        return float(steps[0])
    share = (budget - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def _short(value: float | None) -> str:
    """A number to two significant digits, or to a whole number from 10 on."""
    return number(value, 2)

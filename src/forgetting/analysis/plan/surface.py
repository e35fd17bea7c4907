"""The shifted power law solved for steps, in closed form and for all bootstrap draws at once."""

from __future__ import annotations

import numpy as np

from forgetting.analysis.fit import Estimate, Fit
from forgetting.analysis.fit.bootstrap import interval
from forgetting.analysis.laws import LAWS
from forgetting.analysis.laws.base import Array
from forgetting.errors import UsageError

LAW = LAWS["shifted_power"]


def need_surface(fit: Fit) -> None:
    """Refuse a law that does not say how both losses depend on P and N."""
    if fit.law != LAW.name:
        raise UsageError(f"a plan needs law '{LAW.name}' (both losses over P and N), not '{fit.law}'")


def draws_of(fit: Fit) -> Array:
    """[B, 13] draws; [0, 13] where the fit has no intervals."""
    return np.asarray(fit.draws, dtype=float).reshape(-1, len(LAW.names))


def steps_at(theta: Array, params: float, output: str, level: float) -> Array:
    """Steps N at which an output passes a level, for [S, 13] parameters.

    From Eq. 5 and 6, with I the bracket that the level asks for: N = b * (I - (a/P)^alpha)^(-1/beta).

    Returns:
        [S]; infinite where no number of steps reaches the level: the surface's limit lies before it.
    """
    t = dict(zip(LAW.names, theta.T, strict=True))
    if output == "finetune_loss":
        rise = (level - t["s_ft"]) / t["c_ft"]
        a, alpha, b, beta = t["a_ft"], t["alpha_ft"], t["b_ft"], t["beta_ft"]
    else:
        rise = ((t["s_fft"] - level) / t["c_fft"] - t["s_ft"]) / t["c_ft"]
        a, alpha, b, beta = t["a_f"], t["alpha_f"], t["b_f"], t["beta_f"]
    with np.errstate(all="ignore"):
        wanted = np.where(rise > 0, rise, np.nan) ** (1 / t["rho"])
        left = wanted - (a / params) ** alpha
        steps = b * np.where(left > 0, left, np.nan) ** (-1 / beta)
    return np.where(np.isfinite(steps), steps, np.inf)


def loss_at(theta: Array, params: float, steps: Array, output: str) -> Array:
    """[S] losses of [S, 13] parameters, each at its own number of steps (infinite for the limit)."""
    out = np.empty(theta.shape[0])
    which = LAW.outputs.index(output)
    with np.errstate(all="ignore"):
        for i in range(theta.shape[0]):
            x = {"trainable_params": np.array([params]), "step": np.array([steps[i]])}
            out[i] = LAW.values(theta[i : i + 1], x)[0, which, 0]
    return out


def band(fit: Fit, value: float, draws: Array, *, log: bool = False) -> Estimate:
    """A value with the interval of its draws; NaN where there are none, or some are infinite."""
    if not draws.size or not np.isfinite(draws).all() or not np.isfinite(value):
        return Estimate(value)
    if log:
        low, high = np.exp(interval(np.log(value), np.log(draws), fit.confidence, fit.widen))
    else:
        low, high = interval(np.asarray(value), draws, fit.confidence, fit.widen)
    return Estimate(value, float(low), float(high))

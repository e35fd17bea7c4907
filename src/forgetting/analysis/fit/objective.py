"""Objectives of fits: sums over measurements of a loss of the residual, or of the residual of the logarithm.

Huber's loss with a small delta on the logarithm follows Hoffmann et al. (2022), arXiv:2203.15556. It is summed, not
averaged, because an averaged objective is so small that default tolerances stop an optimiser far from the optimum
(Besiroglu et al. 2024, arXiv:2404.10102).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forgetting.analysis.laws.base import Array
from forgetting.errors import UsageError, did_you_mean

LOGARITHMIC = "log-least-squares"
OBJECTIVES = ("least-squares", LOGARITHMIC, "huber", "huber-log")


@dataclass(frozen=True)
class Objective:
    """A named objective.

    Attributes:
        name: `least-squares` or `log-least-squares` (sum of squares of the residual, or of the residual of the
            logarithm), `huber` or `huber-log` (sum of Huber losses of the same two).
        delta: residual at which Huber's loss changes from quadratic to linear, in the residual's unit.
    """

    name: str = "least-squares"
    delta: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse an unknown name and a delta that is not positive."""
        if self.name not in OBJECTIVES:
            raise UsageError(f"unknown objective '{self.name}'; {did_you_mean(self.name, OBJECTIVES)}")
        if not (np.isfinite(self.delta) and self.delta > 0):
            raise UsageError(f"delta is {self.delta}; it must be a positive number")

    @property
    def log(self) -> bool:
        """Whether residuals are of the logarithm."""
        return self.name in (LOGARITHMIC, "huber-log")

    @property
    def quadratic(self) -> bool:
        """Whether the objective is a sum of squares."""
        return self.name in ("least-squares", LOGARITHMIC)

    def residual(self, y: Array, f: Array) -> Array:
        """Measured minus predicted, of logarithms if `log`; NaN where a logarithm does not exist."""
        if not self.log:
            return np.asarray(y - f)
        return np.asarray(np.log(y) - np.log(np.where(f > 0, f, np.nan)))

    def moved(self, f: Array, r: Array) -> Array:
        """The measured value for prediction f and residual r; the inverse of `residual`."""
        return np.asarray(f * np.exp(r) if self.log else f + r)

    def jacobian_factor(self, f: Array) -> Array | float:
        """Derivative of the prediction, on the scale of the residual, with respect to f."""
        return 1.0 / f if self.log else 1.0

    def cost(self, r: Array, weights: Array) -> Array:
        """The objective, summed over the last axis; infinite where a residual with positive weight is not finite."""
        if self.quadratic:
            each = r * r
        else:
            size = np.abs(r)
            each = np.where(size <= self.delta, 0.5 * r * r, self.delta * (size - 0.5 * self.delta))
        total = np.where(weights > 0, weights * each, 0.0).sum(axis=-1)
        return np.where(np.isfinite(total), total, np.inf)

    def influence(self, r: Array) -> Array:
        """Derivative of half the squared residual, or of Huber's loss, with respect to the residual."""
        return r if self.quadratic else np.clip(r, -self.delta, self.delta)

    def curvature(self, r: Array) -> Array:
        """Second derivative with respect to the residual: 0 in Huber's linear part."""
        return np.ones_like(r) if self.quadratic else (np.abs(r) <= self.delta).astype(float)

    def majorant(self, r: Array) -> Array:
        """Curvature of the parabola above the loss that touches it at r: the weight of reweighted least squares."""
        return np.ones_like(r) if self.quadratic else self.delta / np.maximum(np.abs(r), self.delta)

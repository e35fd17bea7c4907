"""Loss as a straight line in the logarithm of the data, which approximates a power law with a small exponent."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from forgetting.analysis.laws.base import Array, Law, Parameter, Variable


class LogLinear(Law):
    """L = a - b * log D, the natural logarithm; each doubling of D changes the loss by b * log 2."""

    name = "log_linear"
    title = "Loss is linear in the logarithm of the data"
    formula = "loss = a - b * log(D)"
    source = "descriptive, not from one paper: any power law is close to it over a short range; it has no limit"
    variables = (Variable("D", meaning="data, samples or tokens"),)
    outputs = ("loss",)
    parameters = (
        Parameter("a", -np.inf, np.inf, (0.0, 10.0), linear=True, meaning="loss at D = 1, nats/token"),
        Parameter("b", -np.inf, np.inf, (0.0, 1.0), linear=True, meaning="fall of the loss while D grows e-fold"),
    )

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n] losses."""
        return np.asarray(theta[:, 0, None] - theta[:, 1, None] * np.log(x["D"]))[:, None, :]

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n, 2]."""
        log_d = np.log(np.asarray(x["D"]))
        one_and_log = np.stack([np.ones_like(log_d), -log_d], axis=-1)
        return np.broadcast_to(one_and_log, (theta.shape[0], 1, *one_and_log.shape)).astype(theta.dtype)

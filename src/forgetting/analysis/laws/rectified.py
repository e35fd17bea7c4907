"""Fine-tuning loss over data, with pre-training counted as data already seen (Lin et al. 2024, arXiv:2402.02314)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from forgetting.analysis.laws.base import Array, Law, Parameter, Variable


class Rectified(Law):
    """L = B / (D_l + D^beta) + E: flat while D^beta is small compared with D_l, a power law beyond.

    This equals (L_0 - E) / (1 + D^beta / D_l) + E with L_0 = E + B / D_l, the loss without fine-tuning.
    """

    name = "rectified"
    title = "Rectified scaling law of fine-tuning"
    formula = "loss = B / (D_l + D^beta) + E"
    source = "Lin et al. (2024), arXiv:2402.02314; their page has an exponent around the right side, which is 1 here"
    variables = (Variable("D", zero=True, meaning="fine-tuning data, samples or tokens"),)
    outputs = ("loss",)
    parameters = (
        Parameter("B", 0.0, np.inf, (1e-2, 1e6), log=True, linear=True, meaning="scale"),
        Parameter("D_l", 0.0, np.inf, (1e-1, 1e6), log=True, meaning="pre-learned data size, in the unit of D^beta"),
        Parameter("beta", 1e-3, 5.0, (0.05, 1.5), log=True, meaning="exponent of D: how hard the task is to learn"),
        Parameter("E", 0.0, np.inf, (0.1, 3.0), log=True, linear=True, meaning="irreducible loss, nats/token"),
    )

    @staticmethod
    def _terms(theta: Array, x: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        """D^beta, its derivative with respect to beta, and 1 / (D_l + D^beta): [S, n] each."""
        D_l, beta = theta[:, 1, None], theta[:, 2, None]
        data = np.asarray(x["D"])
        log_d = np.log(np.where(data > 0, data, 1.0))
        power = np.where(data > 0, np.exp(beta * log_d), 0.0)
        return power, power * log_d, 1 / (D_l + power)

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n] losses."""
        _, _, inverse = self._terms(theta, x)
        return np.asarray(theta[:, 0, None] * inverse + theta[:, 3, None])[:, None, :]

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n, 4]."""
        _, by_beta, inverse = self._terms(theta, x)
        slope = -theta[:, 0, None] * inverse * inverse
        return np.stack([inverse, slope, slope * by_beta, np.ones_like(inverse)], axis=-1)[:, None]

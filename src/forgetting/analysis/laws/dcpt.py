"""Loss of continual pre-training on a mixture (Que et al. 2024, D-CPT law, arXiv:2406.01375)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from forgetting.analysis.laws.base import Array, Law, Parameter, Variable


class DCPT(Law):
    """L = E + A/N^alpha + B * r^eta / D^beta + C / (r + epsilon)^gamma; r is the share of the measured corpus."""

    name = "dcpt"
    title = "D-CPT law of a data mixture"
    formula = "loss = E + A/N^alpha + B * r^eta / D^beta + C / (r + epsilon)^gamma"
    source = "Que et al. (2024), arXiv:2406.01375"
    variables = (
        Variable("N", meaning="parameters"),
        Variable("D", meaning="training tokens"),
        Variable("r", zero=True, meaning="share of this corpus in the mixture, 0 to 1"),
    )
    outputs = ("loss",)
    parameters = (
        Parameter("E", 0.0, np.inf, (0.1, 3.0), log=True, linear=True, meaning="irreducible loss, nats/token"),
        Parameter("A", 0.0, np.inf, (1.0, 1e5), log=True, linear=True, meaning="scale of the N term"),
        Parameter("B", 0.0, np.inf, (1.0, 1e5), log=True, linear=True, meaning="scale of the D term"),
        Parameter("C", 0.0, np.inf, (1e-2, 10.0), log=True, linear=True, meaning="scale of the mixture term"),
        Parameter("alpha", 1e-3, 5.0, (0.05, 1.5), log=True, meaning="exponent of N"),
        Parameter("beta", 1e-3, 5.0, (0.05, 1.5), log=True, meaning="exponent of D"),
        Parameter("eta", 1e-3, 5.0, (0.05, 1.5), log=True, meaning="exponent of r in the D term"),
        Parameter("gamma", 1e-3, 5.0, (0.05, 1.5), log=True, meaning="exponent of the mixture term"),
        Parameter("epsilon", 1e-4, 1.0, (1e-2, 0.3), log=True, meaning="keeps the mixture term finite at r = 0"),
    )

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n] losses."""
        E, A, B, C = (column[:, None] for column in theta.T[:4])
        by_a, by_b, by_c = self._terms(theta, x)
        return np.asarray(E + A * by_a + B * by_b + C * by_c)[:, None, :]

    @staticmethod
    def _terms(theta: Array, x: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        """N^-alpha, r^eta D^-beta and (r + epsilon)^-gamma: [S, n] each."""
        alpha, beta, eta, gamma, epsilon = (column[:, None] for column in theta.T[4:])
        share = np.asarray(x["r"])
        log_r = np.log(np.where(share > 0, share, 1.0))
        mixed = np.where(share > 0, np.exp(eta * log_r), 0.0) * np.exp(-beta * np.log(x["D"]))
        return np.exp(-alpha * np.log(x["N"])), mixed, (share + epsilon) ** -gamma

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n, 9]."""
        _, A, B, C = (column[:, None] for column in theta.T[:4])
        gamma, epsilon = theta[:, 7, None], theta[:, 8, None]
        by_a, by_b, by_c = self._terms(theta, x)
        share = np.asarray(x["r"])
        log_r = np.log(np.where(share > 0, share, 1.0))
        shifted = share + epsilon
        columns = [np.ones_like(by_a), by_a, by_b, by_c, -A * by_a * np.log(x["N"]), -B * by_b * np.log(x["D"])]
        columns += [B * by_b * log_r, -C * by_c * np.log(shifted), -C * gamma * by_c / shifted]
        return np.stack(columns, axis=-1)[:, None]

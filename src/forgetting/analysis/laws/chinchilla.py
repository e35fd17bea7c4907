"""Loss as a sum of two power laws, of parameters N and tokens D (Hoffmann et al. 2022, arXiv:2203.15556, Eq. 2)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from forgetting.analysis.laws.base import Array, Law, Parameter, Variable


class Chinchilla(Law):
    """L = E + A/N^alpha + B/D^beta, in nats per token."""

    name = "chinchilla"
    title = "Chinchilla scaling law"
    formula = "loss = E + A/N^alpha + B/D^beta"
    source = "Hoffmann et al. (2022), arXiv:2203.15556; fitting practice: Besiroglu et al. (2024), arXiv:2404.10102"
    variables = (Variable("N", meaning="parameters"), Variable("D", meaning="training tokens"))
    outputs = ("loss",)
    parameters = (
        Parameter("E", 0.0, np.inf, (0.3, 3.0), log=True, linear=True, meaning="irreducible loss, nats/token"),
        Parameter("A", 0.0, np.inf, (1.0, 1e5), log=True, linear=True, meaning="scale of the N term"),
        Parameter("B", 0.0, np.inf, (1.0, 1e5), log=True, linear=True, meaning="scale of the D term"),
        Parameter("alpha", 1e-3, 5.0, (0.05, 1.5), log=True, meaning="exponent of N"),
        Parameter("beta", 1e-3, 5.0, (0.05, 1.5), log=True, meaning="exponent of D"),
    )

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n] losses."""
        E, A, B, alpha, beta = (column[:, None] for column in theta.T)
        loss = E + A * np.exp(-alpha * np.log(x["N"])) + B * np.exp(-beta * np.log(x["D"]))
        return np.asarray(loss)[:, None, :]

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n, 5]."""
        _, A, B, alpha, beta = (column[:, None] for column in theta.T)
        log_n, log_d = np.log(x["N"]), np.log(x["D"])
        by_a, by_b = np.exp(-alpha * log_n), np.exp(-beta * log_d)
        columns = [np.ones_like(by_a), by_a, by_b, -A * by_a * log_n, -B * by_b * log_d]
        return np.stack(columns, axis=-1)[:, None]

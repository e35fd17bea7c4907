"""Fine-tuning loss as a product of powers (Zhang et al. 2024, arXiv:2402.17193, Eq. 1)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from forgetting.analysis.laws.base import Array, Law, Parameter, Variable


class Multiplicative(Law):
    """L = A * X^-alpha * D^-beta + E; X is the size of the model, of its pre-training data, or of its tuned part."""

    name = "multiplicative"
    title = "Multiplicative joint scaling law"
    formula = "loss = A * X^-alpha * D^-beta + E"
    source = "Zhang et al. (2024), arXiv:2402.17193, Eq. 1"
    variables = (
        Variable("X", meaning="scale of the model, its pre-training data, or its tuned parameters"),
        Variable("D", meaning="fine-tuning data"),
    )
    outputs = ("loss",)
    parameters = (
        Parameter("A", 0.0, np.inf, (1e-2, 1e5), log=True, linear=True, meaning="scale"),
        Parameter("alpha", -1.0, 5.0, (0.0, 1.0), meaning="exponent of X"),
        Parameter("beta", -1.0, 5.0, (0.0, 1.0), meaning="exponent of D"),
        Parameter("E", 0.0, np.inf, (0.1, 3.0), log=True, linear=True, meaning="irreducible loss, nats/token"),
    )

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n] losses."""
        A, alpha, beta, E = (column[:, None] for column in theta.T)
        return np.asarray(A * np.exp(-alpha * np.log(x["X"]) - beta * np.log(x["D"])) + E)[:, None, :]

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n, 4]."""
        A, alpha, beta, _ = (column[:, None] for column in theta.T)
        log_x, log_d = np.log(x["X"]), np.log(x["D"])
        power = np.exp(-alpha * log_x - beta * log_d)
        columns = [power, -A * power * log_x, -A * power * log_d, np.ones_like(power)]
        return np.stack(columns, axis=-1)[:, None]

"""Forgetting under replay of pre-training data (Bethune et al. 2025, arXiv:2502.06042)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from forgetting.analysis.laws.base import Array, Law, Parameter, Variable


class Injection(Law):
    """L = L0 + A * D^beta / ((1 + B p) N)^alpha; p is the share of pre-training data mixed into fine-tuning."""

    name = "injection"
    title = "Forgetting under replay"
    formula = "loss = base_loss + A * D^beta / ((1 + B * p) * N)^alpha"
    source = "Bethune et al. (2025), arXiv:2502.06042, as its figures annotate it"
    variables = (
        Variable("N", meaning="parameters"),
        Variable("D", meaning="fine-tuning tokens"),
        Variable("p", zero=True, meaning="share of replayed pre-training data, 0 to 1"),
        Variable("base_loss", positive=False, meaning="loss before fine-tuning (L0), nats/token"),
    )
    outputs = ("loss",)
    parameters = (
        Parameter("A", 0.0, np.inf, (1e-3, 1e5), log=True, linear=True, meaning="scale of forgetting"),
        Parameter("B", 0.0, 1e9, (1.0, 1e5), log=True, meaning="how much a share of replay counts as capacity"),
        Parameter("alpha", 1e-3, 5.0, (0.05, 1.5), log=True, meaning="exponent of N"),
        Parameter("beta", 1e-3, 5.0, (0.05, 1.5), log=True, meaning="exponent of D"),
    )

    @staticmethod
    def _term(theta: Array, x: Mapping[str, Array]) -> tuple[Array, Array]:
        """D^beta / ((1 + B p) N)^alpha and the logarithm of (1 + B p) N: [S, n] each."""
        _, B, alpha, beta = (column[:, None] for column in theta.T)
        log_capacity = np.log(1 + B * x["p"]) + np.log(x["N"])
        return np.exp(beta * np.log(x["D"]) - alpha * log_capacity), log_capacity

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n] losses."""
        term, _ = self._term(theta, x)
        return np.asarray(x["base_loss"] + theta[:, 0, None] * term)[:, None, :]

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n, 4]."""
        A, B, alpha, _ = (column[:, None] for column in theta.T)
        term, log_capacity = self._term(theta, x)
        by_b = -A * term * alpha * x["p"] / (1 + B * x["p"])
        columns = [term, by_b, -A * term * log_capacity, A * term * np.log(x["D"])]
        return np.stack(columns, axis=-1)[:, None]

"""Forgetting is linear in the fine-tuning loss (Kalajdzievski 2024, arXiv:2401.05605, Eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from forgetting.analysis.laws.base import Array, Law, Parameter, Variable


class Linear(Law):
    """L_f = -c_fft * L_ft + s_fft, both losses in nats per token."""

    name = "linear"
    title = "Forgetting is linear in the fine-tuning loss"
    formula = "L_f = -c_fft * L_ft + s_fft"
    source = "Kalajdzievski (2024), arXiv:2401.05605, Eq. 4"
    variables = (Variable("finetune_loss", positive=False, meaning="held-out fine-tuning loss, nats/token"),)
    outputs = ("forgetting_loss",)
    parameters = (
        Parameter("c_fft", -np.inf, np.inf, (0.5, 3.0), linear=True, meaning="forgetting per nat of improvement"),
        Parameter("s_fft", -np.inf, np.inf, (0.0, 5.0), linear=True, meaning="L_f at L_ft = 0, nats/token"),
    )

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n] forgetting losses."""
        return (-theta[:, 0, None] * x["finetune_loss"] + theta[:, 1, None])[:, None, :]

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n, 2]."""
        loss = np.asarray(x["finetune_loss"])
        slope_and_one = np.stack([-loss, np.ones_like(loss)], axis=-1)
        return np.broadcast_to(slope_and_one, (theta.shape[0], 1, *slope_and_one.shape)).astype(theta.dtype)

"""The base model's loss at each predicted token of the training windows, computed once per study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...data.windows import Windows
from .base import Situation

if TYPE_CHECKING:
    from torch import Tensor


def base_losses(windows: Windows, at: Situation) -> NDArray[np.float64]:
    """[N] -log p_base(token) of each predicted token, nats, in the order of the windows."""
    size = at.run.measure.batch_tokens

    def compute() -> dict[str, Tensor]:
        import torch

        from ...measuring.losses import token_losses

        losses = token_losses(at.base.model, windows, None, batch_tokens=size)
        return {"losses": torch.from_numpy(losses.data_nll)}

    found: NDArray[np.float64] = at.cached("base-losses", [windows.fingerprint(), size], compute)["losses"].numpy()
    return found.astype(np.float64)

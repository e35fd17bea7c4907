"""A fitted number with its interval, and a prediction with its band."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A parameter's value and interval; `low` and `high` are NaN where no honest interval exists."""

    value: float
    low: float = NAN
    high: float = NAN


@dataclass(frozen=True)
class Prediction:
    """A law's output with its band, in the output's unit; arrays of the variables' broadcast shape.

    Attributes:
        value, low, high: the prediction and its band, NaN where the fit has no intervals. The band is that of the
            law's mean, not of a single new run, which scatters around it.
        extrapolated: True where a variable lies outside the measured range.
    """

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    extrapolated: NDArray[np.bool_]

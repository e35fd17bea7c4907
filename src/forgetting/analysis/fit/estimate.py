"""A fitted number with its interval, and a prediction with its band."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NAN = float("nan")
BOUND = "bound"


@dataclass(frozen=True)
class Estimate:
    """A parameter's value and interval.

    Attributes:
        value: the estimate; infinite or 0 where a scale runs beyond what a number holds.
        low, high: the interval; NaN on a side where there is no honest end.
        identified: `strong`, `weak` (the data limit it on one side alone, or within a large factor), `none` (they do
            not determine it), or empty where that is not known.
    """

    value: float
    low: float = NAN
    high: float = NAN
    identified: str = ""


@dataclass(frozen=True)
class Prediction:
    """A law's output with its band, in the output's unit; arrays of the variables' broadcast shape.

    Attributes:
        value, low, high: the prediction and the band of the law's mean, NaN where the fit has no intervals.
        run_low, run_high: the band of one new run, which scatters around the mean; NaN where that is not known.
        extrapolated: True where a variable lies outside the measured range.
        lost: draws that give no finite number there; the band is of the others, and NaN where too many are lost.
    """

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    extrapolated: NDArray[np.bool_]
    lost: NDArray[np.int64]
    run_low: NDArray[np.float64]
    run_high: NDArray[np.float64]

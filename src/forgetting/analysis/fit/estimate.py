"""A fitted number with its interval, and a prediction with its band."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NAN = float("nan")
BOUND = "bound"


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate; infinite or 0 if a scale exceeds the range of floating-point numbers.
        low, high: the interval; NaN on a side without a valid end.
        identified: how well the data determine a parameter: `strong`, `weak` (limited on one side only, or to within a
            large factor), `none`, `bound` (stopped at a bound although the data favour a value beyond it), or empty if
            unknown.
    """

    value: float
    low: float = NAN
    high: float = NAN
    identified: str = ""


@dataclass(frozen=True)
class Prediction:
    """A law's output with its bands, in the output's unit; arrays of the variables' broadcast shape.

    Attributes:
        value, low, high: the prediction and the band of the law's mean; the band is NaN if the fit has no intervals.
        run_low, run_high: the band of one new run, which includes its scatter around the mean; NaN if unknown.
        extrapolated: whether a variable is outside the measured range.
        lost: number of draws that are not finite there; the band uses the others, and is NaN if too many are lost.
    """

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    extrapolated: NDArray[np.bool_]
    lost: NDArray[np.int64]
    run_low: NDArray[np.float64]
    run_high: NDArray[np.float64]

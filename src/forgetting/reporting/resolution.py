"""The smallest forgetting that a text can distinguish from 0, from the standard errors of a study's measurements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

NEEDED = ("step", "status", "forgetting", "forgetting_se", "text_documents")
"""The columns that `resolution` reads."""
NEAREST = 5
"""Number of measurements nearest to the border; the result is the median over them."""


def resolution(rows: pd.DataFrame) -> float | None:
    """The excess forgetting, nats/token, up to which a measurement cannot be distinguished from 0 (two-sided, 95 %).

    A row's border is Student's t times its standard error, which grows with the forgetting, so a median over all rows
    would be too large. This is the median border of the rows whose forgetting is nearest to it, by ratio. It includes
    the uncertainty from the text's documents, but not the spread between seeds.

    Args:
        rows: a tidy table of one data set.

    Returns:
        nats/token; None if no standard error is known (a text of one document).
    """
    known = (rows["step"] > 0) & (rows["status"] != "failed") & (rows["forgetting_se"] > 0) & rows["forgetting"].notna()
    value = rows.loc[known, "forgetting"].to_numpy(float)
    if value.size == 0:
        return None
    se, documents = (rows.loc[known, name].to_numpy(float) for name in ("forgetting_se", "text_documents"))
    limit = _t(documents) * se
    with np.errstate(divide="ignore"):
        away = np.abs(np.log(np.abs(value) / limit))
    nearest = np.argpartition(away, NEAREST)[:NEAREST] if away.size > NEAREST else slice(None)
    return float(np.median(limit[nearest]))


def _t(documents: NDArray[Any]) -> NDArray[Any]:
    """Two-sided 95 % quantiles of Student's t; of the normal distribution if the number of documents is unknown."""
    from scipy.special import stdtrit

    freedom = np.where(documents > 1, documents - 1, 1e9)
    unique, place = np.unique(freedom, return_inverse=True)  # one text: one number of documents
    found: NDArray[Any] = stdtrit(unique, 0.975)[place]
    return found

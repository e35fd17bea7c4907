"""The smallest forgetting that a text can distinguish from 0, from the standard errors of a study's measurements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

NEEDED = ("step", "status", "forgetting", "forgetting_se", "text_documents")
"""Columns that are read."""
NEAREST = 5
"""Measurements whose standard errors decide."""


def resolution(rows: pd.DataFrame) -> float | None:
    """The excess forgetting, nats/token, up to which a measurement cannot be distinguished from 0 (two-sided, 95 %).

    The standard error grows with the forgetting, so that a median over all rows would be too large. This is Student's t
    times the median standard error of the rows that are nearest to the border: those whose forgetting is nearest to t
    times their own standard error. It counts the documents of the text, not the spread between seeds.

    Args:
        rows: a tidy table of one data set.

    Returns:
        nats/token; None where no standard error is known (a text of one document).
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
    """The two-sided 95 % quantile of Student's t; of the normal law where the number of documents is unknown."""
    from scipy.special import stdtrit

    freedom = np.where(documents > 1, documents - 1, 1e9)
    unique, place = np.unique(freedom, return_inverse=True)  # one text: one number of documents
    found: NDArray[Any] = stdtrit(unique, 0.975)[place]
    return found

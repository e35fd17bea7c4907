"""Keeps a study's page small and fast: in a large study, the charts show means over runs, not single measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from forgetting.measuring.quantities import STUDY
from forgetting.reporting.series import NUMBERS, Series

MOST_POINTS = 5_000
"""Largest number of measurements drawn one by one. Each adds about 450 bytes to the page; Plotly alone is 4.8 MB."""
MOST_MEANS = 3_000
"""Largest number of means drawn when there are more measurements than that."""
MOST_FAILED = 500
"""Largest number of failed runs' measurements drawn in that case."""
MEANS = tuple(quantity.name for quantity in STUDY if not quantity.base)
"""Quantities that differ between runs; the base model's do not."""


def drawn(rows: pd.DataFrame, series: Sequence[Series]) -> tuple[pd.DataFrame, str]:
    """The rows that the charts show, and a sentence that explains them if they are not the measurements themselves.

    Args:
        rows: a tidy table.
        series: the study's series.

    Returns:
        The rows unchanged if there are at most MOST_POINTS. Otherwise one row per data set, series, status and step:
        the mean over its runs, with the standard error of that mean between runs; if these are still too many, only at
        evenly spaced steps. Rows of failed runs are not averaged; at most MOST_FAILED of them are kept. The sentence is
        empty if the rows are unchanged.
    """
    if len(rows) <= MOST_POINTS:
        return rows, ""
    of_run = {run: s.key for s in series for run in s.runs}
    labels = {s.key: s.label for s in series}
    rows = rows.assign(series=rows["run_id"].map(of_run))
    failed = rows[rows["status"] == "failed"]
    mean = _means(rows[rows["status"] != "failed"], labels)
    steps = np.unique(mean["step"])
    every = int(np.ceil(len(mean) / MOST_MEANS))
    if every > 1:
        mean = mean[mean["step"].isin({0.0, *steps[::-1][::every]})]
    said = (
        f"{len(rows):,} measurements of {rows['run_id'].nunique():,} runs are too many to draw: each point in the "
        "charts is a mean over all runs of one method and rank at one step, with the standard error between "
        "runs as error bar"
    )
    said += f"; only one in {every} measured steps is drawn" if every > 1 else ""
    said += f"; of failed runs only {MOST_FAILED} measurements are drawn" if len(failed) > MOST_FAILED else ""
    said += (
        ". The table below the charts lists the same points. Other tables and the laws use every measurement, unless "
        "a law's warnings say which it used."
    )
    return pd.concat([mean, failed.head(MOST_FAILED)], ignore_index=True), said


def _means(rows: pd.DataFrame, labels: dict[str, str]) -> pd.DataFrame:
    """Means over the runs of each data set, series, status and step; a single run keeps its own standard error."""
    groups = rows.groupby(["dataset", "series", "status", "step"], sort=True, observed=True)
    mean = groups[[name for name in NUMBERS if name != "step"]].mean().astype("float64")
    count = groups.size()
    spread, known = groups[list(MEANS)].std(ddof=1), groups[list(MEANS)].count()
    for name in MEANS:  # a run may lack a quantity
        between: pd.Series[float] = spread[name] / np.sqrt(known[name])
        mean[f"{name}_se"] = between.where(known[name] > 1, mean[f"{name}_se"])
    first = groups[["method", "label", "mitigation"]].first() if "label" in rows else groups[["method"]].first()
    out = mean.join(first).reset_index()
    runs = [
        f"mean of {n} run{'s' if n > 1 else ''}, {labels[key]}" for n, key in zip(count, out["series"], strict=True)
    ]
    out["run_id"] = runs
    out["seed"] = np.nan
    return out

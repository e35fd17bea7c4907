"""A study's measurements as a table for readers: values with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from ..display.paths import shortener
from ..display.tables import Shown

if TYPE_CHECKING:
    import pandas as pd


def last_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The last measurement of each run's trained weights; interpolated weights are left out."""
    own = table[table["alpha"].isna()] if "alpha" in table else table
    return own.sort_values("step", kind="stable").groupby("run_id").tail(1)


def measurements_shown(table: pd.DataFrame) -> Shown:
    """Rows of a study's table, small ranks first.

    Leaves out the data set and the seed if all rows share them, and the status if all runs are done.
    """
    short = shortener(table["mitigation"].unique())
    order = ["dataset", "label", "mitigation", "trainable_params", "seed", "run_id", "step"]
    rows = table.sort_values(order, kind="stable").to_dict("records")
    columns: dict[str, Callable[[dict[Hashable, Any]], str]] = {
        "data set": lambda row: str(row["dataset"]),
        "method": lambda row: " + ".join(filter(None, (row["label"], short(row["mitigation"])))),
        "rank": lambda row: _whole(row["rank"]),
        "seed": lambda row: _whole(row["seed"]),
        "P": lambda row: _short(row["trainable_params"]),
        "step": lambda row: _whole(row["step"]),
        "L_ft": lambda row: _mean(row["finetune_loss"], row["finetune_loss_se"]),
        "forgetting": lambda row: _mean(row["forgetting"], row["forgetting_se"]),
        "agreement": lambda row: _mean(row["agreement"], row["agreement_se"]),
        "status": lambda row: str(row["status"]),
    }
    for name, column in (("dataset", "data set"), ("seed", "seed")):
        if len({row[name] for row in rows}) < 2:
            del columns[column]
    if {row["status"] for row in rows} == {"done"}:
        del columns["status"]
    return Shown([], tuple(columns), [tuple(cell(row) for cell in columns.values()) for row in rows])


def _whole(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"


def _short(value: object) -> str:
    """A count to three significant digits: 98.6k, 1.58M."""
    if not isinstance(value, int):
        return "-"
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return str(value)


def _mean(value: float, se: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f} ± {se:.3f}" if not math.isnan(se) else f"{value:.3f} ± ?"

"""Measured points as Plotly traces, whose hover texts the page attaches by row number."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forgetting.display.charts import floats, marker


def points_trace(
    rows: pd.DataFrame,
    x: str,
    y: str,
    colour: str,
    mark: str,
    key: str,
    *,
    scale: float = 1.0,
    errors: bool = True,
    lines: bool = False,
) -> dict[str, Any]:
    """A trace of rows.

    Args:
        rows: the rows, with their number in the panel's hover texts as column `row`.
        x, y: the columns to draw.
        colour, mark: colour and Plotly symbol of the points.
        key: key of the series, by which the legend shows or hides it.
        scale: factor on y.
        errors: whether to draw error bars of one standard error, if known.
        lines: whether to connect the rows of each run.
    """
    rows = _broken_by_run(rows) if lines else rows
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if lines else "markers",
        "x": floats(rows[x]),
        "y": floats(rows[y] * scale),
        "marker": marker(colour, mark),
        "hovertemplate": "%{text}<extra></extra>",
        "meta": {"series": key, "role": "points", "rows": [int(r) for r in rows["row"].fillna(-1)]},
    }
    if lines:
        trace["line"] = {"color": colour, "width": 1.5}
        trace["connectgaps"] = False
    if errors and rows[f"{y}_se"].notna().any():
        bars = floats(rows[f"{y}_se"] * scale)
        trace["error_y"] = {"type": "data", "array": bars, "color": colour, "thickness": 1, "width": 0}
    return trace


def _broken_by_run(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with an empty row between runs, so that no line connects two runs."""
    pieces: list[pd.DataFrame] = []
    for _, run in rows.groupby("run_id", sort=True):
        if pieces:
            pieces.append(pd.DataFrame([{}], columns=rows.columns).astype(rows.dtypes.to_dict(), errors="ignore"))
        pieces.append(run)
    return pd.concat(pieces, ignore_index=True) if len(pieces) > 1 else rows

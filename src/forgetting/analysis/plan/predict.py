"""Predictions of one fit over a grid of its variables, as rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from forgetting.analysis.fit import Fit
from forgetting.analysis.fit.show import aligned, number
from forgetting.errors import UsageError


def predict_rows(
    fit: Fit,
    label: str,
    given: Mapping[str, Sequence[float]],
    *,
    ranks: Sequence[float] | None = None,
    params: Sequence[float] | None = None,
    params_per_rank: float | None = None,
) -> list[dict[str, Any]]:
    """One row a point of the grid.

    Args:
        fit: any law.
        label: goes into every row as `dataset`.
        given: values of variables; every combination is predicted.
        ranks: LoRA ranks, turned into trainable parameters.
        params: trainable parameters instead.
        params_per_rank: of rank 1, where the fit does not know it.

    Returns:
        Rows with the variables, for each output `value`, `low` and `high` (nats per token), with a known floor also
        `forgetting` above it, and `extrapolated`.

    Raises:
        UsageError: a variable is missing, unknown, or out of its domain.
    """
    grid: dict[str, list[float]] = {k: list(v) for k, v in given.items()}
    rank_of: dict[float, float] = {}
    if ranks and params:
        raise UsageError("give ranks or trainable parameters, not both")
    if ranks:
        scale = params_per_rank if params_per_rank is not None else fit.diagnostics.get("params_per_rank")
        if scale is None:
            raise UsageError("this law does not know how many parameters a rank has; give --params-per-rank or --model")
        rank_of = {float(r) * float(scale): float(r) for r in ranks}
        grid["trainable_params"] = list(rank_of)
    elif params:
        grid["trainable_params"] = [float(p) for p in params]
    names = list(grid)
    points = list(itertools.product(*grid.values()))
    columns = {name: np.array([p[i] for p in points]) for i, name in enumerate(names)}
    law = fit.law_object
    out: list[dict[str, Any]] = []
    predictions = {output: fit.predict(output, **columns) for output in law.outputs}
    floor = fit.diagnostics.get("forgetting_floor")
    for i, point in enumerate(points):
        row: dict[str, Any] = {"dataset": label, "law": fit.law, **dict(zip(names, point, strict=True))}
        if rank_of:
            row["rank"] = rank_of[row["trainable_params"]]
        for output, p in predictions.items():
            row[output] = {"value": float(p.value[i]), "low": float(p.low[i]), "high": float(p.high[i])}
            if output == "forgetting_loss" and floor is not None:
                row["forgetting"] = {k: v - float(floor) for k, v in row[output].items()}
            row["extrapolated"] = bool(p.extrapolated[i])
        out.append(row)
    return out


def rows_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text; a point outside the measured range says so."""
    names = [k for k in dict.fromkeys(k for row in rows for k in row) if k != "extrapolated"]
    lines = [(*names, "")]
    for row in rows:
        note = "outside the measured range" if row["extrapolated"] else ""
        lines.append((*(_cell(row.get(name)) for name in names), note))
    return aligned(lines)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        known = np.isfinite(value["low"]) and np.isfinite(value["high"])
        span = f" ({number(value['low'])} to {number(value['high'])})" if known else ""
        return number(value["value"]) + span
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1e5 and value == int(value) else number(value)
    return "" if value is None else str(value)

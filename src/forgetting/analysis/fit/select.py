"""Compares laws by AICc and leave-one-run-out errors, and tests how well a law extrapolates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from forgetting.analysis.fit.data import Data, column_names, read_data
from forgetting.analysis.fit.diagnostics import r2_of_rows
from forgetting.analysis.fit.engine import fit_law
from forgetting.analysis.fit.result import Fit
from forgetting.analysis.fit.runs import RUN
from forgetting.analysis.laws import LAWS, Law
from forgetting.analysis.laws.base import Array
from forgetting.analysis.selection import Part, finished, row_numbers
from forgetting.errors import UsageError, did_you_mean

AXES = ("trainable_params", "step", "N", "D", "X")
PART = 0.6  # share of an axis's distinct values that is fitted; the others are predicted


@dataclass(frozen=True)
class Extrapolation:
    """A fit to the lower part of one axis, compared with the measurements beyond it.

    Attributes:
        axis: the variable that was split.
        fitted_to, tested_to: largest fitted and largest predicted value of the variable.
        rmse: root mean square error of the predictions by output, in the output's unit.
        bias: mean of measured minus predicted, by output.
        band: mean half width of the band of the law's mean, by output; NaN without intervals.
        n_points: number of predicted measurements.
    """

    axis: str
    fitted_to: float
    tested_to: float
    rmse: dict[str, float]
    bias: dict[str, float]
    band: dict[str, float]
    n_points: int


def extrapolation_tests(
    law: str | Law,
    table: Any,
    *,
    columns: Mapping[str, str] | None = None,
    label: str = "",
    run: str | Sequence[str] = RUN,
    iid: bool = False,
    **options: Any,
) -> list[Extrapolation]:
    """Fit the lower 60 % of the distinct values of each axis (P, N, ...) and predict the rest.

    Args:
        law: a name in `LAWS`, or a law.
        table: a DataFrame, or a mapping from column names to sequences.
        columns, label, run, iid, options: see `fit_law`; the options are those of the fit, such as `objective`.

    Raises:
        UsageError: a mistake in the table, or no axis has enough distinct values.
    """
    law = LAWS.find(law) if isinstance(law, str) else law
    data = read_data(law, table, columns=columns, label=label, run=run, iid=iid)
    axes = {name: data.x.get(name, data.columns.get(name)) for name in AXES}
    out = [
        test for name, values in axes.items() if values is not None for test in _test(law, data, name, values, options)
    ]
    if not out:
        raise UsageError(
            f"'{label or 'the table'}' has no axis ({', '.join(AXES)}) with 4 or more values to cut in two"
        )
    return out


def _test(law: Law, data: Data, axis: str, values: Array, options: Mapping[str, Any]) -> list[Extrapolation]:
    distinct = np.unique(values[np.isfinite(values)])
    cut = distinct[max(1, int(np.ceil(PART * distinct.size)) - 1)] if distinct.size >= 4 else np.inf
    near, far = values <= cut, values > cut
    free = sum(p.gauge is None for p in law.parameters)
    if not far.any() or near.sum() * data.y.shape[0] <= free:
        return []
    part = replace(data.take(near), warnings=())
    fit = fit_law(law, part, label=f"{axis} up to {cut:g}", **options)
    x = {k: v[far] for k, v in data.x.items()}
    rmse, bias, band = {}, {}, {}
    for o, output in enumerate(law.outputs):
        prediction = fit.predict(output, **x)
        error = data.y[o, far] - prediction.value
        rmse[output] = float(np.sqrt(np.mean(error**2)))
        bias[output] = float(np.mean(error))
        band[output] = float(np.mean(prediction.high - prediction.low) / 2)
    return [Extrapolation(axis, float(cut), float(values[far].max()), rmse, bias, band, int(far.sum()))]


def r2_by(
    fit: Fit, table: Any, column: str = "method", *, columns: Mapping[str, str] | None = None
) -> dict[str, dict[str, float]]:
    """R2 of a fitted law on groups of rows, which may include rows that were not fitted, as in the paper's Appendix B.

    Args:
        fit: a fitted law.
        table: rows of several methods, data sets, ...; only rows with status `done` are used.
        column: the column that distinguishes the groups.
        columns: the table's column for a variable or output, if its name differs.

    Returns:
        1 - SS_res / SS_tot by value of the column and by output; below 0 if the mean would predict better, and NaN for
        a single row or equal measurements.

    Raises:
        UsageError: no such column, or a mistake in the table.
    """
    present = column_names(table)
    if column not in present:
        raise UsageError(f"the table has no column '{column}'; {did_you_mean(column, present)}")
    groups = np.asarray([str(v) for v in table[column]])
    law, out = fit.law_object, {}
    inner, theta, _ = fit.model()
    for group in sorted(set(groups.tolist())):
        at = np.flatnonzero(groups == group)
        cells: dict[str, Any] = {name: np.asarray(table[name], dtype=object)[at] for name in present}
        part = Part(cells, row_numbers(table)[at])
        if "status" in part and not finished(part["status"]).any():
            continue
        out[group] = r2_of_rows(inner, read_data(law, part, columns=columns, label=group, whole=True), theta)
    return out


def rank_laws(fits: Sequence[Fit]) -> list[dict[str, Any]]:
    """Fits of different laws to the same table, best AICc first, with their leave-one-run-out errors.

    Fits without an AICc are left out. Likelihoods of different data cannot be compared, so laws are sorted by outputs
    first, then by the rows that they were fitted to (a law that needs a further column may lack some), and `delta_aicc`
    is the difference from the best law with the same outputs and rows. AICc treats every measured value as independent,
    which steps of a run are not; if the two disagree, trust the leave-one-run-out error.
    """
    known = [f for f in fits if f.diagnostics.get("aicc") is not None]
    best: dict[tuple[Any, ...], float] = {}
    for f in known:
        best[_fitted_to(f)] = min(best.get(_fitted_to(f), float("inf")), f.diagnostics["aicc"])
    order = sorted(known, key=lambda f: (_fitted_to(f), float(f.diagnostics["aicc"])))
    return [
        {
            "law": f.law_object.called,
            "aicc": f.diagnostics["aicc"],
            "outputs": list(f.law_object.outputs),
            "n_points": f.n_points,
            "delta_aicc": f.diagnostics["aicc"] - best[_fitted_to(f)],
            "leave_one_run_out": f.diagnostics["leave_one_run_out"],
            "r2": f.r2,
        }
        for f in order
    ]


def _fitted_to(fit: Fit) -> tuple[tuple[str, ...], int, bytes]:
    """The outputs of a fit, minus its number of rows, and which rows these are, if known."""
    rows = None if fit.data is None else fit.data.row
    return fit.law_object.outputs, -fit.n_points, b"" if rows is None else rows.tobytes()

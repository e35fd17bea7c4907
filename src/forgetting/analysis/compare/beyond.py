"""Do the laws hold beyond the reference? The paper's Appendix B: fitted to LoRA's ranks, tested on other methods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from forgetting.analysis.compare.reference import Reference
from forgetting.analysis.compare.runs import labels_of_rows, number_in
from forgetting.analysis.fit import Fit, fit_law, unfit
from forgetting.analysis.laws.base import Array
from forgetting.analysis.selection import DONE, is_blank, part_of, status_of
from forgetting.analysis.table_files import Table
from forgetting.analysis.tables import rows
from forgetting.errors import UsageError

LAWS = {"linear": "Eq. 4", "shifted_power": "Eq. 6"}
PAPER = {"linear": 0.1851, "shifted_power": 0.8714}
"""R2 over the paper's other methods (its Appendix B; OpenOrca, Llama 2 7B chat)."""
ALL = "all together"


@dataclass(frozen=True)
class Beyond:
    """One law on the plain runs of one method that it was not fitted to, or of all of them.

    Attributes:
        law: `linear` (Eq. 4) or `shifted_power` (Eq. 6).
        label: the method, or `all together`.
        r2: 1 - SS_res / SS_tot of L_f over the rows; below 0 if their mean predicts better; NaN if L_f is constant.
        bias: mean of measured minus predicted L_f, nats/token: above 0, the law underestimates forgetting.
        rows, runs: number of rows and of runs that it is based on.
        reference_r2: R2 on the rows that the law was fitted to.
    """

    law: str
    label: str
    r2: float
    bias: float
    rows: int
    runs: int
    reference_r2: float


def beyond(table: Table, reference: Reference, start: float, fits: Mapping[str, Fit] | None = None) -> list[Beyond]:
    """Appendix B's table for one data set.

    Args:
        table: all rows of the data set.
        reference: selects the runs that the laws are fitted to, of which only plain ones count.
        start: first step that counts.
        fits: the laws by name, if already fitted.

    Returns:
        One row per law and method, then `all together` if there are several; empty without a law or another method.
    """
    kept = _plain(table, start)
    labels = np.array(labels_of_rows(table), dtype=object)
    mine = np.array(reference.rows(table), dtype=bool) & kept
    others = kept & ~mine
    if not mine.any() or not others.any():
        return []
    made = fits if fits is not None else _fit(part_of(table, np.flatnonzero(mine)))
    out = []
    for law in LAWS:
        if law in made:
            groups = {str(label): others & (labels == label) for label in sorted(set(labels[others]))}
            if len(groups) > 1:
                groups[ALL] = others
            out += [row for label, at in groups.items() if (row := _row(law, label, made[law], table, at))]
    return out


def _row(law: str, label: str, fit: Fit, table: Table, at: Array) -> Beyond | None:
    part = part_of(table, np.flatnonzero(at))
    variables = {name: np.array([*map(number_in, part[name])]) for name in fit.law_object.variable_names}
    measured = np.array([*map(number_in, part["forgetting_loss"])])
    whole = np.isfinite(measured) & np.all([np.isfinite(v) & (v > 0) for v in variables.values()], axis=0)
    if not whole.any():
        return None
    predicted = fit.predict("forgetting_loss", **{k: v[whole] for k, v in variables.items()}).value
    error, measured = measured[whole] - predicted, measured[whole]
    spread = float(np.sum((measured - measured.mean()) ** 2))
    r2 = 1 - float(np.sum(error**2)) / spread if spread > 0 else math.nan
    runs = len({str(part["run_id"][i]) for i in np.flatnonzero(whole)}) if "run_id" in part else int(whole.sum())
    fitted = fit.r2.get("forgetting_loss", math.nan)
    return Beyond(law, label, r2, float(error.mean()), int(whole.sum()), runs, fitted)


def _fit(table: Table) -> dict[str, Fit]:
    """Fit both laws if the rows suffice, without intervals, which Appendix B does not need."""
    made = {}
    for law in LAWS if not unfit(table) else ("linear",):
        try:
            made[law] = fit_law(law, table, bootstrap=0)
        except UsageError:
            continue  # too few rows, ranks or steps for this law: leave it out
    return made


def _plain(table: Table, start: float) -> Array:
    """[n] whether each row is of a finished run without mitigation, not interpolated, and from `start` on."""
    return np.array([_counts(table, i, start) for i in range(rows(table))], dtype=bool)


def _counts(table: Table, i: int, start: float) -> bool:
    def cell(name: str) -> Any:
        return table[name][i] if name in table else None

    alpha = number_in(cell("alpha"))
    step = number_in(cell("step"))
    return (
        status_of(cell("status")) == DONE
        and is_blank(cell("mitigation"))
        and not alpha < 1
        and step > 0
        and step >= start
    )

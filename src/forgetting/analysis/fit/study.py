"""Fits the paper's two laws, and the laws over options of mitigations, to every data set of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from forgetting.analysis.fit.data import USEFUL, column_names
from forgetting.analysis.fit.engine import fit_law
from forgetting.analysis.fit.result import Fit
from forgetting.analysis.laws import LAWS
from forgetting.analysis.laws.base import Array
from forgetting.analysis.selection import as_number, distinct, finished, is_missing
from forgetting.errors import ForgettingError, UsageError
from forgetting.store.axes import AXES, Axis

if TYPE_CHECKING:
    import pandas as pd

LEAST_ROWS = 3  # fewest rows of a data set, because two points always lie on a line
_LAWS = [LAWS.find(name) for name in ("linear", "shifted_power", *AXES)]
_OUTPUTS = [output for law in _LAWS for output in law.outputs]
_VARIABLES = [variable for law in _LAWS for variable in law.variable_names]
_NAMES = ("dataset", "run_id", "status", "seed")
FITTED = tuple(dict.fromkeys([*_NAMES, *USEFUL, *_VARIABLES, *_OUTPUTS, *(f"{output}_se" for output in _OUTPUTS)]))
"""The columns of a study's table that `fit_study` reads."""
LEAST = 3  # fewest different ranks, and different steps, for a law over both


def fit_study(
    table: pd.DataFrame, *, along: Mapping[str, pd.DataFrame] | None = None, seed: int = 0, bootstrap: int = 200
) -> dict[str, dict[str, Fit]]:
    """Fit Eq. 4 (`linear`) and Eq. 5-6 (`shifted_power`) to each data set, and `replay` or `kl` if that was varied.

    Args:
        table: one row per measurement, with the columns `dataset`, `run_id`, `status`, `step`, `trainable_params`,
            `finetune_loss` and `forgetting_loss`; only rows of finished runs are fitted. It should contain the runs
            of one method, such as LoRA.
        along: for each law over an option of a mitigation (`replay`, `kl`), `table` with the runs that vary the option
            added, as from `rows_to_fit`.
        seed: random seed of starts and resamples.
        bootstrap: number of resamples of whole runs.

    Returns:
        Fits by data set and law. If a law cannot be fitted to a data set (too few measurements, or too few values of P
        or N), it is missing from the inner dictionary, and a warning of the linear fit says why. A law over an option
        with too few values is missing without a warning.

    Raises:
        UsageError: a column is missing or has a bad cell, or no data set has a finished run.
    """
    present = column_names(table)
    if "dataset" not in present:
        raise UsageError(f"the study's table has no column 'dataset'; it has {', '.join(present)}")
    out: dict[str, dict[str, Fit]] = {}
    datasets = table["dataset"].astype(str)
    for name in sorted(datasets.unique()):
        part = _of(table, datasets == name)
        done = _of(part, finished(part["status"])) if "status" in present else part
        if not len(done):
            continue
        out[name] = _fit_dataset(part, done, name, seed, bootstrap)
        for law, wider in (along or {}).items():
            rows = _of(wider, wider["dataset"].astype(str) == name)
            if not unfit(_of(rows, finished(rows["status"])), AXES[law]):
                out[name] |= _fit_along(law, rows, name, seed, bootstrap, out[name]["linear"])
    if not out:
        raise UsageError("the study has no finished run to fit")
    return out


def _of(table: pd.DataFrame, rows: pd.Series[bool] | Array) -> pd.DataFrame:
    """The chosen rows of a table; the table itself, without a copy, if these are all."""
    return table if rows.all() else table[rows]


def _fit_dataset(part: pd.DataFrame, done: pd.DataFrame, name: str, seed: int, bootstrap: int) -> dict[str, Fit]:
    fits = {"linear": fit_law("linear", part, label=name, seed=seed, bootstrap=bootstrap)}
    reason = unfit(done)
    if reason:
        fits["linear"].warnings.append(f"shifted_power was not fitted: {reason}")
        return fits
    try:
        fits["shifted_power"] = fit_law(
            "shifted_power", part, label=name, seed=seed, bootstrap=bootstrap, line=fits["linear"]
        )
    except UsageError:
        raise
    except ForgettingError as error:
        fits["linear"].warnings.append(f"shifted_power was not fitted: {error}")
    return fits


def _fit_along(law: str, rows: pd.DataFrame, name: str, seed: int, bootstrap: int, line: Fit) -> dict[str, Fit]:
    """The law over an option; empty, with a warning added to the line's fit, if it could not be fitted."""
    try:
        fit = fit_law(law, rows, label=name, seed=seed, bootstrap=bootstrap)
    except UsageError:
        raise
    except ForgettingError as error:
        line.warnings.append(f"{law} was not fitted: {error}")
        return {}
    seeds: Any = rows.loc[finished(rows["status"]), "seed"].unique() if "seed" in rows else []
    if len(seeds) == 1:
        fit.warnings.append(
            f"all runs have seed {seeds[0]}, and so the same order of data: a run with another seed may lie outside "
            "the bands of a new run more often than they say"
        )
    return {law: fit}


MEANING = {"trainable_params": " (such as ranks)", "step": " (measured steps)"} | {a.column: "" for a in AXES.values()}
"""What the columns of a law over P, N or an option are, in brackets."""


def unfit(table: Any, axis: Axis | None = None) -> str:
    """Why a law over P and N, or also over an option of a mitigation, cannot be fitted to a table's finished runs.

    Empty if it can.
    """
    kept = finished(table["status"]) if "status" in table else slice(None)
    for column in ("trainable_params", "step", *([axis.column] if axis else [])):
        if axis and column not in table:
            return f"there is no column {column}"
        cells, codes = distinct(table[column])
        there = [cells[code] for code in np.unique(codes[kept]) if not is_missing(cells[code])]
        values = len({str(cell) if (number := as_number(cell)) is None else number for cell in there})
        if values < LEAST:
            return (
                f"it needs at least {LEAST} different values of {column}{MEANING[column]}, but the table has {values}"
            )
    return ""

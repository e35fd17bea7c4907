"""The measurements of a study as a table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ..config.schema import ModelConfig, StudyConfig
from ..errors import UsageError
from . import table_cache
from .axes import AXES
from .columns import COLUMNS, LEFT_OUT, TEXTS, columns_of_texts
from .folder import StudyFolder
from .run_files import row_kinds


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain objects with all digits; missing values are None."""
    found = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in found]


def fitted_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `rows_to_fit` without those of mitigated runs: its first table."""
    return rows_to_fit(table)[0]


def rows_to_fit(
    table: pd.DataFrame,
    *,
    start: float | None = None,
    chosen: Collection[str] = (),
    columns: Sequence[str] | None = None,
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The rows that the laws are fitted to: finished, plain runs of the study's first method, from `measure_start` on.

    The laws describe one method's grid; the paper fits LoRA ranks and predicts other methods from them (Appendix B).
    Rows of runs that failed, are damaged or not in the configuration stay, marked by `status`; a fit names and ignores
    them.

    Args:
        table: of one study or several, as from `load_table`, or read back from a file; with at least `step` and
            `measure_start`.
        start: first step, instead of the study's own.
        chosen: columns that the caller has filtered rows by; with `label`, `method` or `mitigation`, methods other
            than the first stay, and with `alpha`, interpolated models.
        columns: the columns to return; default all.

    Returns:
        The rows; and, by name, the rows for each law over an option of a mitigation (`axes`): the same ones and those
        of runs with that mitigation alone (`Axis.alone`). Laws without such runs have no entry.

    Raises:
        UsageError: a value of `step` or `measure_start` is not a number.
    """
    if not table.index.is_unique:  # tables joined by pd.concat
        table = table.reset_index(drop=True)
    keep = pd.Series(True, index=table.index)
    mitigated = {}
    if not {"label", "method", "mitigation"} & set(chosen):
        if {"label", "reference"} <= set(table):
            keep &= table["label"].astype(str) == table["reference"].astype(str)
        plain = _blank(table, "mitigation")
        others = table[keep & ~plain]
        mitigated = {name: axis.alone(others).reindex(keep.index, fill_value=False) for name, axis in AXES.items()}
        keep &= plain | pd.concat(mitigated, axis=1).any(axis=1)
    if "alpha" not in chosen:
        keep &= _blank(table, "alpha")
    if "status" in table:
        keep &= table["status"] != "running"
    named = table["status"].isin(LEFT_OUT) if "status" in table else pd.Series(False, index=table.index)
    first = _numbers(table["measure_start"], "measure_start") if start is None else start
    steps = _numbers(table["step"].where(~named, 0), "step")
    keep &= named | (steps >= first)
    returned = table if columns is None else table[[*columns]]
    every = pd.concat(mitigated, axis=1).any(axis=1) if mitigated else pd.Series(False, index=table.index)
    plainly = keep & ~every
    along = {name: returned[plainly | (keep & alone)] for name, alone in mitigated.items() if (keep & alone).any()}
    return returned[plainly], along


def _blank(table: pd.DataFrame, name: str) -> pd.Series[bool]:
    """Rows in which a column is blank; all rows if the column was dropped."""
    if name not in table:
        return pd.Series(True, index=table.index)
    return table[name].isna() | (table[name].astype(str).str.strip() == "")


def _numbers(column: pd.Series[Any], name: str) -> pd.Series[float]:
    found = pd.to_numeric(column, errors="coerce")
    bad = found.isna().to_numpy()
    if bad.any():
        at = int(bad.argmax())
        raise UsageError(f"row {at + 1}, column '{name}': '{column.iloc[at]!s:.60}' is not a number")
    return found.astype(float)


def _quantised(model: ModelConfig) -> str:
    """How a study's base model is quantised and what forgetting is measured against, for a column."""
    if model.bits is None:
        return ""
    return f"{model.bits} bits" + (", against full precision" if model.reference == "full" else "")


def load_table(
    path: Path, config: StudyConfig | None = None, records: dict[str, dict[str, Any]] | None = None
) -> pd.DataFrame:
    """One row per measurement of a study, with the columns in COLUMNS, then those of further texts.

    Rows of failed runs are included, marked by `status`; a run that failed before its first measurement has none. A
    damaged run has one row with that status and without numbers.

    Args:
        path: the study folder.
        config: the study's configuration, if already read.
        records: filled with the record of each run that is read from its plain files, by the name of its folder.

    Raises:
        UsageError: not a study folder.
        ForgettingError: a damaged file; names it.
    """
    study = StudyFolder.open(path)
    config = config or study.config()
    found = table_cache.read_rows(study.path, row_kinds(config.texts), records)
    stored = [name for name, column in COLUMNS.items() if column.source != "study"]
    more = list(columns_of_texts(config.texts))
    found, same = (
        found.select([*stored, *more]),
        {"reference": config.reference_label, "quantised": _quantised(config.model)},
    )
    for name, value in same.items():
        found = found.append_column(name, pa.repeat(pa.scalar(value, pa.large_string()), found.num_rows))
    table = found.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get, split_blocks=True)
    texts: pd.DataFrame = table.astype(dict.fromkeys(("run_id", *TEXTS, *same), "str"))
    texts.insert([*COLUMNS].index("measure_start"), "measure_start", config.measure.start)
    return texts[[*COLUMNS, *more]] if more else texts

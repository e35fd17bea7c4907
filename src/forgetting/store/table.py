"""The measurements of a study as a table: its columns, and reading it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ..arguments import checked
from ..errors import UsageError
from . import table_cache
from .folder import StudyFolder

COLUMNS: dict[str, str] = {
    "dataset": "name of the fine-tuning data set",
    "method": "name of the fine-tuning method",
    "label": "what the study calls the method: its label, or its name",
    "mitigation": "what holds forgetting back, with its options; empty for nothing",
    "rank": "rank of the method, where it has one",
    "seed": "seed of initialisation and data order",
    "run_id": "the run's folder under runs/",
    "status": "running, done or failed",
    "step": "N, update steps so far; 0 is the base model",
    "alpha": "share of the way from the base model to the trained one, after training; empty for the trained model",
    "trainable_params": "P, trainable parameters",
    "finetune_loss": "L_ft, nats/token on held-out fine-tuning data",
    "forgetting_loss": "L_f, nats/token against the base model's argmax tokens on the general text",
    "forgetting_floor": "L_f of the base model itself",
    "forgetting": "L_f - floor",
    "agreement": "share of positions with the base model's top token",
    "data_loss_base": "ground-truth loss of the base model on the general text, nats/token",
    "data_loss_tuned": "the same of the tuned model",
    "finetune_tokens": "targets that finetune_loss is over",
    "finetune_documents": "documents that they lie in",
    "text_tokens": "targets that the losses on general text are over",
    "text_documents": "documents that they lie in",
    "train_tokens": "tokens trained on so far, padding left out",
    "train_seconds": "training time so far",
    "measure_seconds": "measuring time so far",
    "peak_memory": "most memory that training took so far, MiB: allocated on a GPU, of the whole process on a CPU",
    "reference": "label of the study's first method, whose plain runs the laws are fitted on",
    "measure_start": "first step that the laws are fitted on",
}
"""Columns of the table and what they mean. Each mean has its standard error beside it under `<column>_se`."""


MEANS = (
    "finetune_loss",
    "forgetting_loss",
    "forgetting_floor",
    "forgetting",
    "agreement",
    "data_loss_base",
    "data_loss_tuned",
)


COSTS = ("train_seconds", "measure_seconds", "peak_memory")
"""What differs from one execution of a run to the next."""


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain objects, every digit kept, what is missing as None."""
    found = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in found]


def fitted_rows(table: pd.DataFrame, *, start: float | None = None, chosen: Collection[str] = ()) -> pd.DataFrame:
    """The rows that the laws are fitted on: ended, plain runs of the study's first method, from `measure_start` on.

    The laws are of one method's grid; the paper fits LoRA ranks and predicts other methods from them (Appendix B).
    Rows of failed runs stay, marked by `status`: the fit leaves them out by name.

    Args:
        table: of one study or several, as `load_table` gives it, or the same read back from a file.
        start: another first step than the study's own.
        chosen: columns that the caller has chosen rows by: with `label`, `method` or `mitigation` among them, other
            methods than the first stay, and with `alpha` interpolated models.

    Raises:
        UsageError: a step is not a number.
    """
    keep = pd.Series(True, index=table.index)
    if not {"label", "method", "mitigation"} & set(chosen):
        keep &= (table["label"].astype(str) == table["reference"].astype(str)) & _blank(table["mitigation"])
    if "alpha" not in chosen:
        keep &= _blank(table["alpha"])
    if "status" in table:
        keep &= table["status"] != "running"
    first = _numbers(table["measure_start"], "measure_start") if start is None else start
    return table[keep & (_numbers(table["step"], "step") >= first)]


def _blank(column: pd.Series[Any]) -> pd.Series[bool]:
    return column.isna() | (column.astype(str).str.strip() == "")


def _numbers(column: pd.Series[Any], name: str) -> pd.Series[float]:
    found = pd.to_numeric(column, errors="coerce")
    bad = found.isna().to_numpy()
    if bad.any():
        at = int(bad.argmax())
        raise UsageError(f"row {at + 1}, column '{name}': '{column.iloc[at]!s:.60}' is not a number")
    return found.astype(float)


@checked
def table(study: str | os.PathLike[str]) -> pd.DataFrame:
    """A study's measurements, one row each: values, standard errors, steps, times, memory (COLUMNS).

    Rows of failed runs are there, marked by `status`.

    Args:
        study: its folder.

    Raises:
        UsageError: not a study folder.
    """
    return load_table(Path(study))


def load_table(path: Path) -> pd.DataFrame:
    """One row a measurement of a study, under the columns of COLUMNS and their standard errors.

    Rows of failed runs are there, marked by `status`; a run that failed before its first measurement has none.

    Raises:
        UsageError: not a study folder.
        ForgettingError: a damaged file; names it.
    """
    config = StudyFolder.open(path).config()
    measured_columns = [column for column in COLUMNS if column not in ("reference", "measure_start")]
    names = [
        name for column in measured_columns for name in ([column, f"{column}_se"] if column in MEANS else [column])
    ]
    measured = [name for name in names if name not in ("run_id", *table_cache.TEXTS, *table_cache.WHOLES)]
    means = {name for name in measured if name.removesuffix("_se") in (*MEANS, *COSTS, "alpha")}
    found = table_cache.read_rows(
        StudyFolder.open(path).path, {name: float if name in means else int for name in measured}
    )
    table = found.select(names).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get, split_blocks=True)
    texts: pd.DataFrame = table.astype(dict.fromkeys(("run_id", *table_cache.TEXTS), "str"))
    texts["reference"] = pd.Series(config.reference_label, index=texts.index, dtype="str")
    texts["measure_start"] = config.measure.start
    return texts

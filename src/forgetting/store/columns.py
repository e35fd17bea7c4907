"""The columns of a study's table: what each holds, where it comes from, and what it means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..config.schema import is_probe
from ..measuring.quantities import ONE_PASS, STUDY, of_text


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        kind: type of its values: text, whole number or number.
        source: where its values are stored: the name of the run's folder (`id`), run.json (`run`), the measured row
            (`row`), or study.yaml (`study`).
        meaning: what it means, in one line.
        cost: whether it is a time or memory, which differs each time the same run is executed.
    """

    kind: Literal["text", "whole", "number"]
    source: Literal["id", "run", "row", "study"]
    meaning: str
    cost: bool = False


DAMAGED = "damaged"
"""Status of a run whose files were changed or are incomplete (`chain`)."""
UNASKED = "unasked"
"""Status of a run that is not in the study's configuration (`analysis.study_table`)."""
LEFT_OUT = (DAMAGED, UNASKED)
"""Statuses of runs that no fit, comparison or report uses."""


def _measured() -> Iterator[tuple[str, Column]]:
    for quantity in STUDY:
        yield quantity.name, Column("number", "row", quantity.meaning)
        yield quantity.se, Column("number", "row", "its standard error, clustered by document; empty for one document")


COLUMNS: dict[str, Column] = {
    "dataset": Column("text", "run", "name of the fine-tuning data set"),
    "method": Column("text", "run", "name of the fine-tuning method"),
    "label": Column("text", "run", "the method's label in the study, or its name if it has none"),
    "mitigation": Column("text", "run", "mitigations with their options; empty for none"),
    "replay_fraction": Column("number", "run", "p, share of the training windows that are replayed; 0 for none"),
    "kl_weight": Column(
        "number", "run", "w, weight of the KL penalty; 0 for none, empty if it varies in a run (`budget`)"
    ),
    "rank": Column("whole", "run", "rank of the method; empty if it has none"),
    "seed": Column("whole", "run", "seed of initialisation and data order"),
    "run_id": Column("text", "id", "name of the run's folder under runs/"),
    "status": Column("text", "run", "running, done or failed; damaged or unasked: left out of fits and reports"),
    "step": Column("whole", "row", "N, update steps so far; 0 is the base model"),
    "alpha": Column(
        "number",
        "row",
        "interpolated after training, from the base model (0) to the trained one (1); empty for the trained model",
    ),
    "trainable_params": Column("whole", "run", "P, trainable parameters"),
    "model_params": Column("whole", "run", "parameters of the base model; empty in runs of older versions"),
    **dict(_measured()),
    "finetune_tokens": Column("whole", "row", "target tokens that finetune_loss is averaged over"),
    "finetune_documents": Column("whole", "row", "documents with those target tokens"),
    "text_tokens": Column("whole", "row", "target tokens that the losses on general text are averaged over"),
    "text_documents": Column("whole", "row", "documents with those target tokens"),
    "train_tokens": Column("whole", "row", "tokens trained on so far, without padding"),
    "train_seconds": Column("number", "row", "training time so far, in seconds", cost=True),
    "measure_seconds": Column("number", "row", "measuring time so far, in seconds", cost=True),
    "peak_memory": Column(
        "number",
        "row",
        "peak memory of training so far, in MiB: allocated on a GPU, or of the whole process on a CPU",
        cost=True,
    ),
    "reference": Column("text", "study", "label of the study's first method; laws are fitted to its plain runs"),
    "measure_start": Column("whole", "study", "first step that laws are fitted to"),
    "quantised": Column(
        "text",
        "study",
        "`4 bits`, or `8 bits, against full precision`; empty if the base model is not quantised",
    ),
}
"""The columns by name, in the order of the table."""

TEXTS = tuple(name for name, column in COLUMNS.items() if column.kind == "text" and column.source == "run")
WHOLES = tuple(name for name, column in COLUMNS.items() if column.kind == "whole" and column.source == "run")
NUMBERS = tuple(name for name, column in COLUMNS.items() if column.kind == "number" and column.source == "run")
"""TEXTS, WHOLES and NUMBERS are the columns from run.json, which have one value per run."""
COSTS = tuple(name for name, column in COLUMNS.items() if column.cost)
"""Columns of times and memory, which differ each time the same run is executed."""


KEPT = {
    "kept": Column("number", "row", "share of the base model's answers that the tuned model would give word for word"),
    "kept_se": Column("number", "row", "its standard error; empty for one answer"),
}
"""Additional columns of a text that consists of the base model's own answers."""


def columns_of_texts(texts: Mapping[str, Any]) -> dict[str, Column]:
    """The columns of a study's further texts: the same as for general text, with names such as `forgetting[chat]`.

    Args:
        texts: the configured texts by name.
    """
    names = [name for quantity in ONE_PASS for name in (quantity.name, quantity.se)]
    each = {name: COLUMNS[name] for name in (*names, "text_tokens", "text_documents")}
    return {
        of_text(name, text): replace(column, meaning=f"of {text}: {column.meaning}")
        for text, config in texts.items()
        for name, column in (each | KEPT if is_probe(config) else each).items()
    }

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
        kind: a text, a whole number, or a number.
        source: the run's folder name (`id`), what all rows of a run share (`run`), the measured row (`row`), or the
            configuration (`study`).
        meaning: in one line.
        cost: differs from one execution of a run to the next.
    """

    kind: Literal["text", "whole", "number"]
    source: Literal["id", "run", "row", "study"]
    meaning: str
    cost: bool = False


DAMAGED = "damaged"
"""Status of a run whose rows are not those that were measured (`chain`)."""
UNASKED = "unasked"
"""Status of a run that the study's configuration does not ask for (`analysis.study_table`)."""
LEFT_OUT = (DAMAGED, UNASKED)
"""Statuses of runs that no fit, comparison or report takes, whatever is measured in them."""


def _measured() -> Iterator[tuple[str, Column]]:
    for quantity in STUDY:
        yield quantity.name, Column("number", "row", quantity.meaning)
        yield quantity.se, Column("number", "row", "its standard error, clustered by document; empty for one document")


COLUMNS: dict[str, Column] = {
    "dataset": Column("text", "run", "name of the fine-tuning data set"),
    "method": Column("text", "run", "name of the fine-tuning method"),
    "label": Column("text", "run", "what the study calls the method: its label, or its name"),
    "mitigation": Column("text", "run", "what holds forgetting back, with its options; empty for nothing"),
    "replay_fraction": Column("number", "run", "p, share of the windows trained on that are replayed; 0 for none"),
    "rank": Column("whole", "run", "rank of the method, where it has one"),
    "seed": Column("whole", "run", "seed of initialisation and data order"),
    "run_id": Column("text", "id", "the run's folder under runs/"),
    "status": Column("text", "run", "running, done or failed; damaged or unasked: left out of all that is concluded"),
    "step": Column("whole", "row", "N, update steps so far; 0 is the base model"),
    "alpha": Column(
        "number",
        "row",
        "share of the way from the base model to the trained one, after training; empty for the trained model",
    ),
    "trainable_params": Column("whole", "run", "P, trainable parameters"),
    "model_params": Column("whole", "run", "parameters of the base model; empty where an older run does not say"),
    **dict(_measured()),
    "finetune_tokens": Column("whole", "row", "targets that finetune_loss is over"),
    "finetune_documents": Column("whole", "row", "documents that they lie in"),
    "text_tokens": Column("whole", "row", "targets that the losses on general text are over"),
    "text_documents": Column("whole", "row", "documents that they lie in"),
    "train_tokens": Column("whole", "row", "tokens trained on so far, padding left out"),
    "train_seconds": Column("number", "row", "training time so far", cost=True),
    "measure_seconds": Column("number", "row", "measuring time so far", cost=True),
    "peak_memory": Column(
        "number",
        "row",
        "most memory that training took so far, MiB: allocated on a GPU, of the whole process on a CPU",
        cost=True,
    ),
    "reference": Column("text", "study", "label of the study's first method, whose plain runs the laws are fitted on"),
    "measure_start": Column("whole", "study", "first step that the laws are fitted on"),
    "quantised": Column(
        "text", "study", "`4 bits` or `8 bits` of the base model, `against full precision` or not; empty for none"
    ),
}
"""By name, in the order of the table."""

TEXTS = tuple(name for name, column in COLUMNS.items() if column.kind == "text" and column.source == "run")
WHOLES = tuple(name for name, column in COLUMNS.items() if column.kind == "whole" and column.source == "run")
NUMBERS = tuple(name for name, column in COLUMNS.items() if column.kind == "number" and column.source == "run")
"""What all rows of a run share."""
COSTS = tuple(name for name, column in COLUMNS.items() if column.cost)
"""What differs from one execution of a run to the next."""


KEPT = {
    "kept": Column("number", "row", "share of the base model's answers that the tuned model would give word for word"),
    "kept_se": Column("number", "row", "its standard error; empty for one answer"),
}
"""What is measured of the base model's own answers beside the rest."""


def columns_of_texts(texts: Mapping[str, Any]) -> dict[str, Column]:
    """The columns of a study's further texts: those of `text`, under names such as `forgetting[chat]`.

    Args:
        texts: by name, as configured.
    """
    names = [name for quantity in ONE_PASS for name in (quantity.name, quantity.se)]
    each = {name: COLUMNS[name] for name in (*names, "text_tokens", "text_documents")}
    return {
        of_text(name, text): replace(column, meaning=f"of {text}: {column.meaning}")
        for text, config in texts.items()
        for name, column in (each | KEPT if is_probe(config) else each).items()
    }

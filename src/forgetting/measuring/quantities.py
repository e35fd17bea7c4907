"""What is measured: the one table that a run, the callback, `measure`, the study's table and the report use.

Each quantity is a mean over tokens; its standard error, clustered by document, is in `<name>_se`. A standard error that
does not exist (one document) is null; only `row` decides this.

Imports neither torch nor transformers, since the store and the report read this table.

Shapes: N predicted positions, in the order of the windows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .estimate import Mean, clustered_mean

Array = NDArray[Any]
NATS, SHARE = "nats/token", "1"


@dataclass(frozen=True)
class PerToken:
    """Values of a tuned model and its base at each predicted position of a text; None if not computed.

    Attributes:
        data_nll: [N] -log p_tuned(true token), nats.
        target_nll: [N] -log p_tuned(the base model's argmax token), nats.
        agrees: [N] bool, whether both models have the same top token.
        kl: [N] KL(base || tuned), nats.
        soft_nll: [N] cross-entropy of the tuned model against the base model's whole distribution, nats.
        base_log_prob: [N] log p_base(its argmax token), nats.
        base_data_log_prob: [N] log p_base(true token), nats.
    """

    data_nll: Array
    target_nll: Array | None = None
    agrees: Array | None = None
    kl: Array | None = None
    soft_nll: Array | None = None
    base_log_prob: Array | None = None
    base_data_log_prob: Array | None = None


@dataclass(frozen=True)
class Quantity:
    """One measured quantity.

    Attributes:
        name: its column.
        title: its name for readers; `note` says of what, or against what.
        symbol: its symbol in formulas and charts, with `_` before a subscript; empty if it has none.
        unit: NATS, or SHARE.
        values: computes its value at each position.
        text: what it is measured on: the held-out fine-tuning data, or the general text.
        whole: whether it needs the base model's whole distribution, and so a pass of both models.
        base: whether it depends only on the base model, and so is the same for all runs.
    """

    name: str
    title: str
    note: str
    symbol: str
    unit: str
    values: Callable[[PerToken], Array]
    text: Literal["heldout", "general"] = "general"
    whole: bool = False
    base: bool = False

    @property
    def se(self) -> str:
        """The column of its standard error."""
        return f"{self.name}_se"

    @property
    def meaning(self) -> str:
        """A one-line description."""
        symbol = f" {self.symbol}" if self.symbol else ""
        unit = "" if self.unit == SHARE else f", {self.unit}"
        return f"{self.title}{symbol}{unit}: {self.note}"

    @property
    def label(self) -> str:
        """The description shown next to its number."""
        return f"{self.title[0].upper()}{self.title[1:]}, {self.note}"

    @property
    def axis(self) -> str:
        """The title of a chart's axis; shares are drawn in percent."""
        symbol = re.sub(r"_(\w+)", r"<sub>\1</sub>", self.symbol)
        return f"{self.title}{' ' + symbol if symbol else ''} ({'%' if self.unit == SHARE else self.unit})"


def _had(array: Array | None) -> Array:
    if array is None:
        raise AssertionError("a requested quantity's arrays were not computed")
    return array


QUANTITIES = (
    Quantity(
        name="finetune_loss",
        title="fine-tuning loss",
        note="of the true tokens of held-out fine-tuning data",
        symbol="L_ft",
        unit=NATS,
        values=lambda at: at.data_nll,
        text="heldout",
    ),
    Quantity(
        name="forgetting_loss",
        title="forgetting loss",
        note="against the base model's top tokens",
        symbol="L_f",
        unit=NATS,
        values=lambda at: _had(at.target_nll),
    ),
    Quantity(
        name="forgetting_floor",
        title="forgetting floor",
        note="the forgetting loss of the base model itself",
        symbol="floor",
        unit=NATS,
        values=lambda at: -_had(at.base_log_prob),
        base=True,
    ),
    Quantity(
        name="forgetting",
        title="forgetting",
        note="excess over the base model",
        symbol="L_f − floor",
        unit=NATS,
        # paired token by token, so that the floor's spread over documents cancels
        values=lambda at: _had(at.target_nll) + _had(at.base_log_prob),
    ),
    Quantity(
        name="soft_forgetting_loss",
        title="soft forgetting loss",
        note="against the base model's whole distribution",
        symbol="",
        unit=NATS,
        values=lambda at: _had(at.soft_nll),
        whole=True,
    ),
    Quantity(
        name="kl",
        title="KL divergence",
        note="from base to tuned model",
        symbol="",
        unit=NATS,
        values=lambda at: _had(at.kl),
        whole=True,
    ),
    Quantity(
        name="agreement",
        title="agreement",
        note="share of positions with the base model's top token",
        symbol="",
        unit=SHARE,
        values=lambda at: _had(at.agrees),
    ),
    Quantity(
        name="data_loss_base",
        title="ground-truth loss",
        note="of the base model",
        symbol="",
        unit=NATS,
        values=lambda at: -_had(at.base_data_log_prob),
        base=True,
    ),
    Quantity(
        name="data_loss_tuned",
        title="ground-truth loss",
        note="of the tuned model",
        symbol="",
        unit=NATS,
        values=lambda at: at.data_nll,
    ),
)
"""All quantities in the order of their columns."""
BY_NAME = {quantity.name: quantity for quantity in QUANTITIES}
HELDOUT = tuple(quantity for quantity in QUANTITIES if quantity.text == "heldout")
PAIR = tuple(quantity for quantity in QUANTITIES if quantity.text == "general")
"""Quantities of two models on general text, as from `measure`."""
ONE_PASS = tuple(quantity for quantity in PAIR if not quantity.whole)
"""Quantities that need only a pass of the tuned model once the base model's targets exist; measured during training."""
STUDY = tuple(quantity for quantity in QUANTITIES if quantity in (*HELDOUT, *ONE_PASS))
"""Quantities at a measured step of a study."""
SHOWN = (BY_NAME["forgetting"], *(quantity for quantity in PAIR if quantity.name != "forgetting"))
"""Quantities of `measure` in reading order: the most important number comes first."""
AXES = {quantity.name: quantity.axis for quantity in QUANTITIES} | {
    "step": "update steps N",
    "trainable_params": "trainable parameters P",
}
"""Axis titles of charts by column."""


def values(quantities: Iterable[Quantity], arrays: PerToken) -> dict[str, Array]:
    """Each quantity's [N] values."""
    return {quantity.name: quantity.values(arrays) for quantity in quantities}


def means(values: Mapping[str, Array], documents: NDArray[Any]) -> dict[str, Mean]:
    """Each quantity's mean over all tokens, with its clustered standard error.

    Args:
        values: name -> [N].
        documents: [N] the document of each position.
    """
    return {name: clustered_mean(array, documents) for name, array in values.items()}


def row(found: Mapping[str, Mean]) -> dict[str, float | None]:
    """Means as columns, each with its standard error; a value that does not exist or is not finite is None.

    Examples:
        >>> row({"forgetting": Mean(0.25, math.nan, 10, 1)})
        {'forgetting': 0.25, 'forgetting_se': None}
    """
    columns: dict[str, float | None] = {}
    for name, mean in found.items():
        columns |= {name: _finite(mean.value), f"{name}_se": _finite(mean.se)}
    return columns


def not_finite(found: Mapping[str, Mean]) -> dict[str, float]:
    """The means that are not finite, as after diverged training."""
    return {name: mean.value for name, mean in found.items() if not math.isfinite(mean.value)}


def kept(agrees: NDArray[Any], documents: NDArray[Any]) -> Mean:
    """The share of documents in which both models have the same top token at every target.

    For greedy answers of the base model, this is the share that the tuned model would repeat word for word.

    Args:
        agrees: [N] bool, whether both models have the same top token.
        documents: [N] the document of each target.
    """
    names, place = np.unique(documents, return_inverse=True)
    wrong = np.bincount(place, ~agrees.astype(bool), minlength=len(names))
    mean = clustered_mean((wrong == 0).astype(np.float64), names)
    return Mean(mean.value, mean.se, len(documents), mean.n_documents)


def of_text(column: str, text: str) -> str:
    """The column of a further text, or of its standard error; with an empty name, the column of `text` itself.

    Examples:
        >>> of_text("forgetting", "chat"), of_text("forgetting_se", "chat")
        ('forgetting[chat]', 'forgetting[chat]_se')
    """
    if not text:
        return column
    name = column.removesuffix("_se")
    return f"{name}[{text}]{column[len(name) :]}"


def logged(column: str) -> str:
    """A row's column as loggers get it: NAME/forgetting for the column forgetting[NAME].

    Examples:
        >>> logged("forgetting[chat]_se"), logged("forgetting_se")
        ('chat/forgetting_se', 'forgetting_se')
    """
    name, mark, rest = column.partition("[")
    text, _, end = rest.partition("]")
    return f"{text}/{name}{end}" if mark else column


def columns(quantities: Iterable[Quantity]) -> list[str]:
    """The columns of a table, each mean followed by its standard error."""
    return [name for quantity in quantities for name in (quantity.name, quantity.se)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""Predictions of a fit over a grid of its variables."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from forgetting.analysis.fit import Fit, show
from forgetting.analysis.fit.show import number
from forgetting.display.numbers import plain, several
from forgetting.display.tables import Result, Shown
from forgetting.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd


ABOVE = {"forgetting_loss": ("forgetting", -1), "forgetting": ("forgetting_loss", 1)}
"""By output of a law: the quantity that follows from it and the floor, and the floor's sign in the sum."""


def predict_rows(
    fit: Fit,
    label: str,
    given: Mapping[str, Sequence[float]],
    *,
    ranks: Sequence[float] | None = None,
    params: Sequence[float] | None = None,
    params_per_rank: float | None = None,
) -> list[dict[str, Any]]:
    """Predict one row per point of a grid.

    Args:
        fit: any law.
        label: value of `dataset` in every row.
        given: values of variables; every combination is predicted.
        ranks: LoRA ranks, converted to trainable parameters.
        params: trainable parameters, instead of ranks.
        params_per_rank: trainable parameters of rank 1, if the fit does not know them.

    Returns:
        One row per combination; see `Predictions.rows`. With a known floor, also `forgetting` above it (or the
        `forgetting_loss` for a law of forgetting).

    Raises:
        UsageError: a variable is missing, unknown, outside its domain, or was measured at only one other value.
    """
    grid: dict[str, list[float]] = {k: list(v) for k, v in given.items()}
    rank_of: dict[float, float] = {}
    if ranks and params:
        raise UsageError("give ranks or trainable parameters, not both")
    if ranks:
        scale = _scale(fit, params_per_rank)
        rank_of = {float(r) * scale: float(r) for r in ranks}
        grid["trainable_params"] = list(rank_of)
    elif params:
        grid["trainable_params"] = [float(p) for p in params]
    names = list(grid)
    points = list(itertools.product(*grid.values()))
    columns = {name: np.array([p[i] for p in points]) for i, name in enumerate(names)}
    _refuse_unmeasured(fit, columns)
    law = fit.law_object
    out: list[dict[str, Any]] = []
    predictions = {output: fit.predict(output, **columns) for output in law.outputs}
    floor = fit.diagnostics.get("forgetting_floor")
    for i, point in enumerate(points):
        row: dict[str, Any] = {"dataset": label, "law": fit.law, **dict(zip(names, point, strict=True))}
        if rank_of:
            row["rank"] = rank_of[row["trainable_params"]]
        for output, p in predictions.items():
            ends = ("value", "low", "high", "run_low", "run_high")
            row[output] = {end: float(getattr(p, end)[i]) for end in ends}
            if floor is not None and output in ABOVE:
                other, sign = ABOVE[output]
                row[other] = {k: v + sign * float(floor) for k, v in row[output].items()}
            row["extrapolated"] = bool(p.extrapolated[i])
            row["draws_lost"] = max(int(p.lost[i]), row.get("draws_lost", 0))
        row["band_laws"] = fit.band_laws(extrapolated=row["extrapolated"])
        row["confidence"], row["draws"], row["no_bands"] = fit.confidence, len(fit.draws), fit.no_bands
        out.append(row)
    return out


def _scale(fit: Fit, params_per_rank: float | None) -> float:
    """Trainable parameters of rank 1.

    Raises:
        UsageError: they are unknown.
    """
    scale = params_per_rank if params_per_rank is not None else fit.diagnostics.get("params_per_rank")
    if scale is None:
        raise UsageError(
            "this law does not know how many parameters a rank has; give params_per_rank (--params-per-rank) or "
            "model (--model)"
        )
    return float(scale)


def _refuse_unmeasured(fit: Fit, columns: Mapping[str, np.ndarray]) -> None:
    """Refuse new values of a variable that was measured at only one value, because the fit cannot predict them."""
    for name, (low, high) in fit.measured_range.items():
        asked = columns.get(name, np.array([low]))
        other = asked[np.abs(asked - low) > 1e-9 * abs(low)]
        if low == high and other.size:
            raise UsageError(
                f"{name} {other[0]:,g}: '{fit.label or fit.law}' was fitted at only one value of {name}, {low:,g}, and "
                "says nothing about others"
            )


HIDDEN = ("extrapolated", "band_laws", "confidence", "draws", "draws_lost", "no_bands")
"""Columns that the printed table leaves out."""


@dataclass(frozen=True)
class Predictions(Result):
    """Predicted losses.

    Attributes:
        rows: one per point, with the variables; for each output `value`, the band `low` to `high` of the law's mean and
            the band `run_low` to `run_high` of one new run, in nats/token; `extrapolated`; `band_laws`, the laws in
            the bands with their shares; `confidence`; `draws`, the number of draws; `draws_lost`, how many of them are
            not finite there; and `no_bands`, why there are no bands (empty if there are).
    """

    rows: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; NaN becomes null."""
        return {"predictions": plain(list(self.rows))}

    def to_frame(self) -> pd.DataFrame:
        """One row per point: variables, each output with the ends of its bands, and whether it is extrapolated."""
        import pandas as pd

        return pd.DataFrame([_flat(row) for row in self.rows])

    def shown(self) -> list[Shown]:
        """The rows as a table; points outside the measured range are marked."""
        names = [k for k in dict.fromkeys(k for row in self.rows for k in row) if k not in HIDDEN]
        cells = [
            (*(_cell(row.get(name)) for name in names), "outside the measured range" if row["extrapolated"] else "")
            for row in self.rows
        ]
        return [Shown([], (*names, ""), cells, self._notes())]

    def _notes(self) -> list[str]:
        """Notes on what the bands are, or why there are none."""
        banded = [row for row in self.rows if row["draws"]]
        several_laws = len({row["dataset"] for row in self.rows}) > 1
        notes = []
        if banded:
            levels = " and ".join(sorted({f"{row['confidence']:.0%}" for row in banded}))
            notes.append(f"in brackets the {levels} band of the law's mean, then that of one new run")
        if lost := max(row["draws_lost"] for row in self.rows):
            notes.append(
                f"{lost} of {several(max(row['draws'] for row in self.rows), 'resample')} gave no finite number at a "
                "point; its band uses the others, or is left out if more than a fifth are lost"
            )
        said = [
            (row, show.spans(row["band_laws"]))
            if len(row["band_laws"]) > 1
            else (row, f"no bands, because this law has no intervals: {row['no_bands']}" if row["no_bands"] else "")
            for row in self.rows
        ]
        notes += dict.fromkeys((f"{row['dataset']}: " if several_laws else "") + text for row, text in said if text)
        return notes


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without nested values, for a DataFrame."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        if name == "band_laws":
            out[name] = show.shares(value)
        elif isinstance(value, dict):
            out |= {name: value["value"]} | {f"{name}_{end}": v for end, v in value.items() if end != "value"}
        else:
            out[name] = value
    return out


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        pairs = [(value["low"], value["high"]), (value["run_low"], value["run_high"])]
        spans = [f"{number(low)} to {number(high)}" for low, high in pairs if np.isfinite([low, high]).all()]
        return number(value["value"]) + (f" ({'; '.join(spans)})" if spans else "")
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1e5 and value == int(value) else number(value)
    return "" if value is None else str(value)

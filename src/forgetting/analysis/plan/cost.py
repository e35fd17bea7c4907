"""The cost of a planned run: tokens, floating-point operations, and time at the speed of a study's runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forgetting.analysis.selection import finished
from forgetting.store.axes import Axis

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cost:
    """The cost of one training step.

    Attributes:
        tokens_per_step: tokens per step, without padding.
        model_params: number of parameters of the base model; without it, FLOPs are unknown.
        seconds: seconds per step, and additional seconds per step and trainable parameter; None if unknown.
        mitigated: the same two numbers for a step with a mitigation that needs passes of its own, NaN if unknown; None
            without such a mitigation.
    """

    tokens_per_step: float
    model_params: float | None = None
    seconds: tuple[float, float] | None = None
    mitigated: tuple[float, float] | None = None

    def of_mitigated(self) -> Cost:
        """The cost of a step with the mitigation; FLOPs are unknown if it needs passes of its own."""
        if self.mitigated is None:
            return self
        seconds = self.mitigated if np.isfinite(self.mitigated).all() else None
        return replace(self, model_params=None, seconds=seconds, mitigated=None)

    def tokens(self, steps: float) -> float:
        """Tokens of a run with this number of steps."""
        return steps * self.tokens_per_step

    def flops(self, steps: float, trainable: float) -> float | None:
        """Estimated floating-point operations of a run, without attention; None if unknown.

        Per token, the forward pass takes 2 per parameter of the model (N) and of the adapter (P). The backward pass
        takes 2 per parameter for the gradients of activations, and 2 per trainable parameter for its own gradient.
        The sum is 4 N + 6 P for an adapter on a frozen model, and 6 N for full fine-tuning, where P = N and there are
        no parameters besides the model's (Kaplan et al. 2020, arXiv:2001.08361, section 2.1 and Table 1).
        """
        if self.model_params is None:
            return None
        beside = 0.0 if trainable >= self.model_params else trainable
        return self.tokens(steps) * (4 * (self.model_params + beside) + 2 * trainable)

    def hours(self, steps: float, trainable: float) -> float | None:
        """Hours of training for a run, without measuring; None if unknown."""
        if self.seconds is None:
            return None
        alone, each = self.seconds
        return steps * (alone + each * trainable) / 3600


def costs_of(law: Any, axis: Axis | None = None) -> dict[str, Cost]:
    """The cost of a step of a study's finished runs, by data set; empty if `law` is not a study.

    Args:
        law: a study's folder or result, or any other source of a plan's law.
        axis: the option that a plan is over, to know the time of a step also with its mitigation.
    """
    table = getattr(law, "table", None)
    if isinstance(law, str | os.PathLike) and (Path(law) / "study.yaml").is_file():
        from forgetting.analysis.study_table import counted_rows, read_study

        table = counted_rows(read_study(Path(law)).table)
    return {} if table is None else costs_of_table(table, axis)


def costs_of_table(table: pd.DataFrame, axis: Axis | None = None) -> dict[str, Cost]:
    """The cost of a step of the finished runs in a study's table, by data set; empty if columns are missing."""
    costs = _costs(_plain(table))
    if axis is None or not axis.slower:
        return costs
    slower = _costs(table[axis.alone(table)])
    return {name: replace(cost, mitigated=_seconds(slower.get(name))) for name, cost in costs.items()}


def _seconds(cost: Cost | None) -> tuple[float, float]:
    """The seconds of a cost; NaN if unknown."""
    return (np.nan, np.nan) if cost is None or cost.seconds is None else cost.seconds


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs without mitigations; all rows if there are no such runs."""
    if "mitigation" not in table:
        return table
    plain = table[table["mitigation"].fillna("").astype(str).str.strip() == ""]
    return plain if len(plain) else table


def _costs(table: pd.DataFrame) -> dict[str, Cost]:
    used = ["train_tokens", "train_seconds", "trainable_params", "status", "step", "run_id", "dataset"]
    if not set(used) <= set(table):
        return {}
    used += [name for name in ("model_params",) if name in table]
    done = table.loc[(table["step"] > 0) & finished(table["status"]), used]
    last = done.sort_values("step", kind="stable").groupby("run_id").tail(1)
    return {str(name): cost for name, runs in last.groupby("dataset") if (cost := _cost(runs)) is not None}


def _cost(runs: pd.DataFrame) -> Cost | None:
    """The cost from the last row of each run: median tokens, and a line through median seconds against P."""
    tokens, seconds, params, steps = (
        runs[name].to_numpy(float, na_value=np.nan)
        for name in ("train_tokens", "train_seconds", "trainable_params", "step")
    )
    known = np.isfinite(tokens) & np.isfinite(seconds) & np.isfinite(params) & (tokens > 0) & (seconds > 0)
    if not known.any():
        return None
    tokens, seconds, params, steps = (values[known] for values in (tokens, seconds, params, steps))
    of_each = {p: float(np.median((seconds / steps)[params == p])) for p in np.unique(params)}
    alone, each = float(np.median(list(of_each.values()))), 0.0
    if len(of_each) > 1:
        slope, start = np.polyfit(list(of_each), list(of_each.values()), 1)
        if slope > 0 and start > 0:
            alone, each = float(start), float(slope)
    return Cost(float(np.median(tokens / steps)), _model_params(runs), (alone, each))


def _model_params(runs: pd.DataFrame) -> float | None:
    """Number of parameters of the base model; None if the runs do not record one, or disagree."""
    found = set(runs["model_params"].dropna()) if "model_params" in runs else set()
    return float(found.pop()) if len(found) == 1 else None

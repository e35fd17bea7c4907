"""What a planned run costs: tokens, floating point operations, and time at the speed that a study's runs had."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forgetting.analysis.fit.data import DONE

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cost:
    """What one step costs.

    Attributes:
        tokens_per_step: trained on in one step, padding left out.
        model_params: parameters of the base model; without it FLOPs are not known.
        seconds: of a step: with no trainable parameter, and more for each; None where the speed is not known.
    """

    tokens_per_step: float
    model_params: float | None = None
    seconds: tuple[float, float] | None = None

    def tokens(self, steps: float) -> float:
        """Tokens of a run."""
        return steps * self.tokens_per_step

    def flops(self, steps: float, trainable: float) -> float | None:
        """Floating point operations of a run, as a multiple of its tokens: an estimate, attention left out.

        Forwards 2 for each parameter and token, of the model (N) and of the adapter (P); backwards 2 for the gradients
        of activations, and 2 for those of each trainable parameter: 4 N + 6 P for an adapter on a frozen model. In full
        fine-tuning P is N, no parameter is beside the model, and that is 6 N (Kaplan et al. 2020, arXiv:2001.08361,
        section 2.1 and Table 1).
        """
        if self.model_params is None:
            return None
        beside = 0.0 if trainable >= self.model_params else trainable
        return self.tokens(steps) * (4 * (self.model_params + beside) + 2 * trainable)

    def hours(self, steps: float, trainable: float) -> float | None:
        """Hours of training of a run, measuring left out."""
        if self.seconds is None:
            return None
        alone, each = self.seconds
        return steps * (alone + each * trainable) / 3600


def costs_of(law: Any) -> dict[str, Cost]:
    """By data set, what a step of a study's finished runs cost; empty where `law` is no study.

    Args:
        law: a study's folder or result, or anything else that a plan is made from.
    """
    table = getattr(law, "table", None)
    if isinstance(law, str | os.PathLike) and (Path(law) / "study.yaml").is_file():
        from forgetting.analysis.study_table import counted_rows, read_study

        table = counted_rows(read_study(Path(law)).table)
    return {} if table is None else costs_of_table(table)


def costs_of_table(table: pd.DataFrame) -> dict[str, Cost]:
    """By data set, what a step of the finished runs of a study's table cost; empty where it does not say."""
    used = ["train_tokens", "train_seconds", "trainable_params", "status", "step", "run_id", "dataset"]
    if not set(used) <= set(table):
        return {}
    used += [name for name in ("model_params",) if name in table]
    done = table.loc[(table["status"] == DONE) & (table["step"] > 0), used]
    last = done.sort_values("step", kind="stable").groupby("run_id").tail(1)
    return {str(name): cost for name, runs in last.groupby("dataset") if (cost := _cost(runs)) is not None}


def _cost(runs: pd.DataFrame) -> Cost | None:
    """From the last row of each run: median tokens, and a line of the median seconds over trainable parameters."""
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
    """Of the base model; None where the runs do not say, or not the same."""
    found = set(runs["model_params"].dropna()) if "model_params" in runs else set()
    return float(found.pop()) if len(found) == 1 else None

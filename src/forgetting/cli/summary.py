"""A study's result as tables for a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from ..api import Conclusion
    from ..config import StudyConfig
    from ..fit import Estimate
    from ..study import StudyResult


def print_summary(config: StudyConfig, result: StudyResult, conclusion: Conclusion) -> None:
    """The last measurement of each run, the laws, and where the report lies, on standard output."""
    console = Console()
    last = result.table.sort_values("step").groupby("run_id", as_index=False).last()
    console.print(measurements_table(last.sort_values(["dataset", "method", "trainable_params", "seed"])))
    for dataset in config.datasets:
        laws = conclusion.fits.get(dataset, {})
        if "linear" in laws:
            fit = laws["linear"]
            slope, r2 = fit.parameters["c_fft"], fit.r2["forgetting_loss"]
            console.print(
                f"{dataset}: each nat of fine-tuning loss gained costs {_interval(slope)} nats of forgetting "
                f"(linear law, R² {r2:.4f})",
                highlight=False,
                markup=False,
            )
        if "shifted_power" in laws:
            r2s = laws["shifted_power"].r2
            console.print(
                f"{dataset}: joint power law in P and N, R² {r2s['forgetting_loss']:.4f} for forgetting, "
                f"{r2s['finetune_loss']:.4f} for fine-tuning loss",
                highlight=False,
                markup=False,
            )
    seconds = f"{result.seconds / 60:.1f} min" if result.seconds >= 1 else "nothing left to run"
    console.print(f"report: {conclusion.report}  ({seconds})", highlight=False, markup=False, soft_wrap=True)


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def measurements_table(table: pd.DataFrame) -> Table:
    """Rows of a study's table with values ± standard errors."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("data set", "method", "rank", "seed"):
        shown.add_column(name)
    for name in ("P", "step", "L_ft", "forgetting", "agreement", "status"):
        shown.add_column(name, justify="right")
    for row in table.to_dict("records"):
        shown.add_row(
            escape(str(row["dataset"])),
            escape(str(row["method"])),
            _whole(row["rank"]),
            _whole(row["seed"]),
            _whole(row["trainable_params"]),
            _whole(row["step"]),
            _mean(row["finetune_loss"], row["finetune_loss_se"]),
            _mean(row["forgetting"], row["forgetting_se"]),
            _mean(row["agreement"], row["agreement_se"]),
            str(row["status"]),
        )
    return shown


def _whole(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"


def _mean(value: float, se: float) -> str:
    return f"{value:.4f} ± {se:.4f}" if not math.isnan(se) else f"{value:.4f} ± ?"

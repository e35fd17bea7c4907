"""A study's result as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from ..analysis.fit import Estimate
    from ..config.schema import StudyConfig
    from ..studies.conclude import Conclusion
    from ..studies.study import StudyResult


def print_summary(config: StudyConfig, result: StudyResult, conclusion: Conclusion) -> None:
    """The last measurement of each run, the laws, and where the report lies, on standard output."""
    console = Console()
    last = result.table.sort_values("step").groupby("run_id", as_index=False).last()
    console.print(measurements_table(last.sort_values(["dataset", "label", "mitigation", "trainable_params", "seed"])))
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
    """Rows of a study's table with values ± standard errors; columns that say the same in every row are left out."""
    rows = table.to_dict("records")
    columns: dict[str, Callable[[dict[Hashable, Any]], str]] = {
        "data set": lambda row: escape(str(row["dataset"])),
        "method": lambda row: escape(" + ".join(filter(None, (row["label"], row["mitigation"])))),
        "rank": lambda row: _whole(row["rank"]),
        "seed": lambda row: _whole(row["seed"]),
        "P": lambda row: _short(row["trainable_params"]),
        "step": lambda row: _whole(row["step"]),
        "L_ft": lambda row: _mean(row["finetune_loss"], row["finetune_loss_se"]),
        "forgetting": lambda row: _mean(row["forgetting"], row["forgetting_se"]),
        "agreement": lambda row: _mean(row["agreement"], row["agreement_se"]),
        "status": lambda row: str(row["status"]),
    }
    for name, column in (("dataset", "data set"), ("seed", "seed")):
        if len({row[name] for row in rows}) < 2:
            del columns[column]
    if {row["status"] for row in rows} == {"done"}:
        del columns["status"]
    shown = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        shown.add_column(name, justify="left" if name in ("data set", "method") else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*(cell(row) for cell in columns.values()))
    return shown


def _whole(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"


def _short(value: object) -> str:
    """A count to three digits: 98.6k, 1.58M."""
    if not isinstance(value, int):
        return "-"
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return str(value)


def _mean(value: float, se: float) -> str:
    return f"{value:.3f} ± {se:.3f}" if not math.isnan(se) else f"{value:.3f} ± ?"

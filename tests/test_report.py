"""The report's page as text: content, order, escaping, what is missing. The browser's view: test_report_browser.py."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forgetting.config import StudyConfig
from forgetting.errors import ForgettingError
from forgetting.report import render_study, write_study_report
from forgetting.report import series as groups

# Table 1 of the paper; P = 2,498,560 r
TABLE_1 = {
    "openorca": dict(
        a_f=0.0388e7, a_ft=0.0007e7, b_f=23.6418, b_ft=72.9186, c_ft=0.0020, c_fft=1.7334, s_ft=0.6126, s_fft=2.0481,
        alpha_f=0.0351, alpha_ft=0.0424, beta_f=0.1468, beta_ft=0.1219, rho=7.6885,
    ),
    "news": dict(
        a_f=0.0011e7, a_ft=0.0022e7, b_f=97.8466, b_ft=54.8678, c_ft=0.0028, c_fft=1.0615, s_ft=1.9253, s_fft=3.1285,
        alpha_f=0.0458, alpha_ft=0.0383, beta_f=0.1044, beta_ft=0.1161, rho=7.5996,
    ),
}  # fmt: skip
RANKS = (8, 16, 32, 64, 128, 256)
STEPS = (0, *range(50, 261, 10))
FLOOR = 0.42


def law(name: str, output: str, P: float, N: float) -> float:
    t = TABLE_1[name]
    which = "f" if output == "forgetting_loss" else "ft"
    bracket = (t[f"a_{which}"] / P) ** t[f"alpha_{which}"] + (t[f"b_{which}"] / N) ** t[f"beta_{which}"]
    loss = t["c_ft"] * bracket ** t["rho"] + t["s_ft"]
    return loss if which == "ft" else -t["c_fft"] * loss + t["s_fft"]


@dataclass
class StandInFit:
    """The attributes of a Fit that the report reads, with Table 1's values."""

    name: str
    law: str
    measured_range: dict[str, tuple[float, float]]
    warnings: list[str] = field(default_factory=list)
    label: str = "law"
    n_points: int = 132
    n_runs: int = 6
    confidence: float = 0.95
    diagnostics: dict[str, Any] = field(default_factory=lambda: {"starts": 60, "agreeing": 58})
    spread: float = 0.03

    @property
    def parameters(self) -> dict[str, Any]:
        names = ("c_fft", "s_fft") if self.law == "linear" else TABLE_1["news"]
        values = {name: TABLE_1[self.name][name] for name in names}
        bounds = {name: (value * (1 - self.spread), value * (1 + self.spread)) for name, value in values.items()}
        if self.law != "linear":
            bounds["c_ft"] = (math.nan, math.nan)
        return {n: SimpleNamespace(value=v, low=bounds[n][0], high=bounds[n][1]) for n, v in values.items()}

    @property
    def r2(self) -> dict[str, float]:
        return (
            {"forgetting_loss": 0.9736} if self.law == "linear" else {"finetune_loss": 0.991, "forgetting_loss": 0.977}
        )

    def predict(self, output: str, **variables: float) -> Any:
        t = TABLE_1[self.name]
        if self.law == "linear":
            value = -t["c_fft"] * variables["finetune_loss"] + t["s_fft"]
        else:
            value = law(self.name, output, variables["trainable_params"], variables["step"])
        outside = any(not low <= variables[n] <= high for n, (low, high) in self.measured_range.items())
        return SimpleNamespace(value=value, low=value - 0.006, high=value + 0.006, extrapolated=outside)


def study(
    datasets: tuple[str, ...] = ("openorca", "news"),
    methods: tuple[dict[str, Any], ...] = tuple(
        {"name": "lora", "rank": r, "scaling": "rank-stabilized"} for r in RANKS
    ),
    names: dict[str, str] | None = None,
) -> tuple[StudyConfig, pd.DataFrame, list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """A study made of Table 1 with noise: config, table, runs, fits."""
    rng = np.random.default_rng(0)
    names = names or {}
    rows, runs = [], []
    for laws in datasets:
        dataset = names.get(laws, laws)
        truth = laws if laws in TABLE_1 else "news"
        for method in methods:
            rank = method.get("rank")
            params = 2_498_560 * rank if rank else {"full": 6_738_415_616, "ia3": 614_400}[method["name"]]
            run_id = "-".join([dataset, method["name"], *([f"r{rank}"] if rank else []), "s0-5f0c2a91d3"])
            for step in STEPS:
                tuned = law(truth, "finetune_loss", params, step) if step else law(truth, "finetune_loss", 2e7, 20)
                forgot = law(truth, "forgetting_loss", params, step) if step else FLOOR
                noise = rng.normal(0, 0.002, 2) if step else (0.0, 0.0)
                forgot += noise[1]
                rows.append(
                    dict(
                        dataset=dataset, method=method["name"], rank=rank, seed=0, run_id=run_id, status="done", step=step,
                        trainable_params=params, finetune_loss=tuned + noise[0], finetune_loss_se=0.0061,
                        forgetting_loss=forgot, forgetting_loss_se=0.0043, forgetting_floor=FLOOR,
                        forgetting_floor_se=0.003, forgetting=forgot - FLOOR, forgetting_se=0.0038 if step else 0.0,
                        agreement=1 - 0.45 * (forgot - FLOOR), agreement_se=0.0021, data_loss_base=2.1,
                        data_loss_base_se=0.02, data_loss_tuned=2.1 + 0.3 * (forgot - FLOOR), data_loss_tuned_se=0.02,
                        train_seconds=4.1 * step, measure_seconds=0.4 * step,
                    )
                )  # fmt: skip
            runs.append(
                dict(
                    run_id=run_id, status="done", dataset=dataset, method=method, seed=0, trainable_params=params,
                    versions={"torch": "2.13.0", "transformers": "5.1.0", "peft": "0.21.2"},
                    hardware={"device": "cpu", "cores": 2, "memory_gb": 8}, text_tokens=245_569, heldout_tokens=20_480,
                    started="2026-01-05T10:00:00Z", finished="2026-01-05T10:18:00Z",
                    notices=["weights were stored as float16 and are measured in float32"],
                )
            )  # fmt: skip
    table = pd.DataFrame(rows)
    table["rank"] = table["rank"].astype("Int64")
    config = StudyConfig.model_validate(
        {
            "name": "paper-in-small",
            "model": {"source": "meta-llama/Llama-2-7b-chat-hf"},
            "text": {"source": "Salesforce/wikitext", "split": "test"},
            "datasets": {name: {"source": f"{name}.jsonl"} for name in datasets},
            "methods": list(methods),
        }
    )
    fits: dict[str, dict[str, Any]] = {}
    for laws in set(datasets) & set(TABLE_1):
        mine = table[(table.dataset == names.get(laws, laws)) & (table.step > 0)]
        span = {c: (float(mine[c].min()), float(mine[c].max())) for c in ("finetune_loss", "trainable_params", "step")}
        fits[names.get(laws, laws)] = {
            "linear": StandInFit(laws, "linear", {"finetune_loss": span["finetune_loss"]}),
            "shifted_power": StandInFit(laws, "shifted_power", {c: span[c] for c in ("trainable_params", "step")}),
        }
    return config, table, runs, fits


def fail_one(table: pd.DataFrame, runs: list[dict[str, Any]], why: str) -> str:
    """Make the first run a failed one, cut at step 100; its id."""
    run_id = str(runs[0]["run_id"])
    runs[0] |= {"status": "failed", "why": why}
    mine = table["run_id"] == run_id
    table.drop(table[mine & (table["step"] > 100)].index, inplace=True)  # noqa: PD002 - the test's own table
    table.loc[table["run_id"] == run_id, "status"] = "failed"
    return run_id

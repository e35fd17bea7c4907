"""The report's page as text: content, order, escaping, what is missing. The browser's view: test_report_browser.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forgetting.config import StudyConfig
from forgetting.errors import ForgettingError
from forgetting.fit import Estimate, Fit, fit_from_published
from forgetting.laws import LAWS
from forgetting.report import render_study, write_study_report
from forgetting.report import series as groups

PAPER = {name: fit_from_published(f"kalajdzievski2024/{name}") for name in ("openorca", "news")}
TABLE_1 = {name: {key: e.value for key, e in fit.parameters.items()} for name, fit in PAPER.items()}
RANKS = (8, 16, 32, 64, 128, 256)
STEPS = (0, *range(50, 261, 10))
FLOOR = 0.42
LORA = tuple({"name": "lora", "rank": r, "scaling": "rank-stabilized"} for r in RANKS)


def law(name: str, output: str, P: float, N: float) -> float:
    return float(PAPER[name].predict(output, trainable_params=P, step=N).value)


def fit_of(laws: str, name: str, spans: dict[str, tuple[float, float]], **fields: Any) -> Fit:
    """A fit with Table 1's values, and resamples a little around them."""
    rng = np.random.default_rng(1)
    table = {key: TABLE_1[laws][key] for key in LAWS[name].names}
    spread = np.array([0.0 if key == "c_ft" else 0.002 for key in table])
    draws = np.array(list(table.values())) * (1 + spread * rng.normal(size=(60, len(table))))
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    given = {
        "law": name,
        "label": laws,
        "parameters": {
            k: Estimate(v, float(a), float(b)) for (k, v), a, b in zip(table.items(), low, high, strict=True)
        },
        "objective": "least-squares",
        "objective_value": 0.001,
        "r2": {"forgetting_loss": 0.9736} | ({} if name == "linear" else {"finetune_loss": 0.991}),
        "n_points": 132,
        "n_runs": 6,
        "measured_range": spans,
        "confidence": 0.95,
        "warnings": [],
        "diagnostics": {"starts": 60, "agreeing": 58},
        "draws": draws.tolist(),
    }
    return Fit(**(given | fields))


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
                    {
                        "dataset": dataset,
                        "method": method["name"],
                        "rank": rank,
                        "seed": 0,
                        "run_id": run_id,
                        "status": "done",
                        "step": step,
                        "trainable_params": params,
                        "finetune_loss": tuned + noise[0],
                        "finetune_loss_se": 0.0061,
                        "forgetting_loss": forgot,
                        "forgetting_loss_se": 0.0043,
                        "forgetting_floor": FLOOR,
                        "forgetting_floor_se": 0.003,
                        "forgetting": forgot - FLOOR,
                        "forgetting_se": 0.0038 if step else 0.0,
                        "agreement": 1 - 0.45 * (forgot - FLOOR),
                        "agreement_se": 0.0021,
                        "data_loss_base": 2.1,
                        "data_loss_base_se": 0.02,
                        "data_loss_tuned": 2.1 + 0.3 * (forgot - FLOOR),
                        "data_loss_tuned_se": 0.02,
                        "finetune_tokens": 20_480,
                        "finetune_documents": 31,
                        "text_tokens": 245_569,
                        "text_documents": 62,
                        "train_seconds": 4.1 * step,
                        "measure_seconds": 0.4 * step,
                    }
                )
            runs.append(
                {
                    "run_id": run_id,
                    "status": "done",
                    "dataset": dataset,
                    "method": method,
                    "seed": 0,
                    "trainable_params": params,
                    "base": "f5db02db724555f92da89c216ac04704f23d4590",
                    "versions": {"torch": "2.13.0", "transformers": "5.1.0", "peft": "0.21.2"},
                    "hardware": {"device": "cpu", "threads": 2, "dtype": "float32"},
                    "started": "2026-01-05T10:00:00+00:00",
                    "finished": "2026-01-05T10:18:00+00:00",
                    "notices": ["the training data were passed over 1.3 times"],
                }
            )
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
            "linear": fit_of(laws, "linear", {"finetune_loss": span["finetune_loss"]}),
            "shifted_power": fit_of(laws, "shifted_power", {c: span[c] for c in ("trainable_params", "step")}),
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

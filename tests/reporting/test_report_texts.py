"""Further texts in a report: all rows of a small study, evenly spaced rows of a large one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from forgetting.config.schema import TextConfig
from forgetting.reporting.texts import SHOWN_RUNS, SHOWN_STEPS, texts_section


def table(runs: int, steps: int) -> pd.DataFrame:
    """Run i forgets i * step * 1e-6 nats on text and twice as much on chat."""
    run, step = (grid.reshape(-1) for grid in np.meshgrid(np.arange(runs), np.arange(1, steps + 1), indexing="ij"))
    return pd.DataFrame(
        {
            "run_id": [f"run-{i:05d}" for i in run],
            "dataset": "a",
            "seed": run,
            "step": step,
            "status": "done",
            "forgetting": run * step / 1e6,
            "forgetting_se": 1e-3,
            "forgetting[chat]": 2 * run * step / 1e6,
            "forgetting[chat]_se": 1e-3,
        }
    )


def test_a_large_study_shows_evenly_spaced_runs_and_steps_with_their_last():
    runs, steps = SHOWN_RUNS + 50, SHOWN_STEPS + 30
    page = str(texts_section({"chat": TextConfig(source="chat.jsonl")}, table(runs, steps), {}, {}))
    assert f"{SHOWN_RUNS} of {runs:,} runs, evenly spaced" in page
    assert page.count("<td>a</td>") == SHOWN_RUNS
    assert "<td>run-00000</td>" in page
    last = (runs - 1) * steps / 1e6
    assert f"<td>run-{runs - 1:05d}</td>" in page
    assert f"{last:.4f}" in page
    assert f"{2 * last:.4f}" in page
    assert f'<td class="num">{steps}</td>' in page


def test_a_small_study_shows_every_run_and_failed_runs_and_interpolated_models_are_left_out():
    rows = table(3, 2).assign(alpha=[np.nan] * 5 + [0.5])
    rows.loc[rows["run_id"] == "run-00001", "status"] = "failed"
    page = str(texts_section({"chat": TextConfig(source="chat.jsonl")}, rows, {}, {}))
    assert "evenly spaced" not in page
    assert "run-00001" not in page
    assert "<td>run-00002</td>" in page
    assert f"{2 * 2 * 1 / 1e6:.4f}" in page


def test_no_further_texts_no_section():
    assert not texts_section({}, table(2, 2), {}, {})

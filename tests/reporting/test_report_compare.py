"""The comparison's section of a report: only if there is something to compare, and in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_report import with_words
from test_report_browser import browser, show  # noqa: F401 - fixtures

from forgetting.analysis.compare import compare_tables
from forgetting.config.schema import StudyConfig
from forgetting.reporting import render_study
from forgetting.reporting.comparison import signed
from forgetting.store.folder import StudyFolder
from forgetting.store.summary import last_rows, measurements_shown
from forgetting.store.table import load_table
from forgetting.studies.conclude import conclude
from simulated import study

CONTENDERS: dict[str, dict[str, Any]] = {
    "replay": {"rank": 16, "saving": 0.3, "mitigation": "replay fraction=0.1", "label": "lora"},
    "kl": {"rank": 16, "saving": 0.0, "mitigation": "kl weight=2.0", "label": "lora"},
    "attention": {"rank": 16, "saving": -0.4},
    "full": {"saving": 0.1},
}


def made(contenders: dict[str, dict[str, Any]] | None = None, seed: int = 0) -> tuple[Any, ...]:
    """Arguments of render_study for a simulated study."""
    about = CONTENDERS if contenders is None else contenders
    rows = pd.DataFrame(study(np.random.default_rng(seed), ranks=(4, 8, 16, 32, 64), contenders=about))
    rows["label"] = [about.get(label, {}).get("label", label) for label in rows["label"]]
    rows["method"] = ["full" if label == "full" else "lora" for label in rows["label"]]
    rows = rows.astype({"rank": "Int64"})
    runs = []
    for run_id, row in rows.groupby("run_id").first().iterrows():
        method = {"name": row["method"]} | ({} if pd.isna(row["rank"]) else {"rank": int(row["rank"])})
        kept = ("dataset", "label", "mitigation", "status")
        runs.append({"run_id": run_id, "method": method, "seed": int(row["seed"])} | {k: row[k] for k in kept})
        runs[-1]["trainable_params"] = int(row["trainable_params"])
    config = StudyConfig.model_validate(
        {
            "name": "what-helps",
            "model": {"source": "miniature"},
            "text": {"source": "general.jsonl"},
            "datasets": {"d": {"source": "d.jsonl"}},
            "methods": [{"name": "lora", "rank": [4, 8, 16, 32, 64]}],
        }
    )
    table = {str(name): rows[name].tolist() for name in rows.columns}
    comparison = compare_tables({"d": table}, "lora", fits={"d": {}})
    return config, rows, runs, {}, (), comparison


def test_the_section_ranks_in_words_and_shows_cards():
    text = with_words(render_study(*made()))
    assert "What helps at equal fine-tuning loss" in text
    assert text.index("saves 0.") < text.index("no evidence that it beats early stopping") < text.index("costs 0.")
    assert "Pareto frontier." in text
    assert "A share of the windows that a run trains on is general text." in text
    assert "LoRA of rank r: W + scale * B A" in text
    assert "Every parameter of the model trains" in text


def test_no_section_without_a_second_label_or_a_mitigation():
    args = made()
    page = render_study(*args[:-1])
    assert 'id="compare"' not in page
    assert "#compare" not in page


def test_mitigated_runs_are_series_of_their_own():
    text = with_words(render_study(*made()))
    assert "LoRA rank 16 + replay fraction=0.1" in text
    assert "attention rank 16" in text


def test_two_texts_of_one_file_name_are_two_series_without_their_whole_paths():
    mitigations = {folder: f"replay text=/home/me/{folder}/general.jsonl" for folder in "ab"}
    args = made({name: {"rank": 16, "mitigation": one, "label": "lora"} for name, one in mitigations.items()})
    text = with_words(render_study(*args))
    assert "+ replay text=/home/me" not in text
    assert "LoRA rank 16 + replay text=a/general.jsonl" in text
    assert "LoRA rank 16 + replay text=b/general.jsonl" in text
    missing = dict.fromkeys(("alpha", "agreement", "finetune_loss_se", "forgetting_se", "agreement_se"), np.nan)
    table = measurements_shown(last_rows(args[1].assign(**missing)))
    names = {row[table.columns.index("method")] for row in table.rows}
    assert names == {"lora", *(f"lora + replay text={folder}/general.jsonl" for folder in "ab")}


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>"])
def test_names_of_contenders_are_escaped(name):
    page = render_study(*made({name: {"rank": 16}, "other": {"rank": 16, "mitigation": name, "label": "lora"}}))
    assert name not in page


def test_a_signed_number():
    assert [signed(v) for v in (0.1, -0.25, 0.0, -0.0001)] == ["+0.100", "−0.250", "0.000", "0.000"]


@pytest.mark.full
def test_conclude_writes_compare_json_for_a_study_with_two_labels(tmp_path: Path):
    config, rows, runs, *_ = made({"attention": {"rank": 16, "saving": 0.4}})
    folder = StudyFolder.create_or_resume(tmp_path / "s", config)
    for run in runs:
        target = folder.run(run["run_id"])
        target.update(**{k: v for k, v in run.items() if k != "run_id"})
        for row in rows[rows["run_id"] == run["run_id"]].to_dict("records"):
            names = ("step", "finetune_loss", "forgetting", "forgetting_loss", "train_seconds")
            target.append({name: row[name] for name in names})
    assert len(load_table(folder.path)) == len(rows)
    conclude(folder.path)
    content = json.loads((folder.path / "compare.json").read_text())
    assert content["reference"] == "lora"
    assert content["datasets"]["d"]["contenders"][0]["name"] == "attention rank 16"
    assert 'id="compare"' in (folder.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.full
@pytest.mark.parametrize("width", [1280, 390])
def test_the_section_is_drawn_and_fits(show, width):  # noqa: F811 - the fixture
    config, rows, runs, fits, _, comparison = made()
    opened = show((config, rows, runs, fits), width, comparison=comparison)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    drawn = page.locator("[data-kind=plane] .point").count()
    assert drawn == 9 * 12 + sum(p.front for p in comparison.contests["d"].points)
    page.locator("#c0 .legend button").last.click()
    assert page.locator("[data-kind=plane] .point").count() == 9 * 12
    assert page.locator("svg.whisker").count() == 4
    assert opened.trouble == []


@pytest.mark.full
def test_a_reference_that_is_not_a_line_is_reported_and_nothing_is_ranked():
    config, rows, runs, fits, capabilities, _ = made()
    text = with_words(render_study(config, rows, runs, fits, capabilities, made()[-1]))
    assert "The reference’s line. Line through lora: R² 0." in text or "Parabola through lora: R² 0." in text
    assert "No line:" not in text
    rng = np.random.default_rng(0)
    flat = {name: rows[name].tolist() for name in rows.columns}
    flat["forgetting"] = [float(v) for v in rng.normal(0.5, 0.05, len(rows))]
    flat["rank"] = [None if label == "attention" else r for label, r in zip(rows["label"], rows["rank"], strict=True)]
    comparison = compare_tables({"d": flat}, "lora", fits={"d": {}})
    text = with_words(render_study(config, rows, runs, fits, capabilities, comparison))
    assert "Not a line: in these runs its slope is not clearly different from 0" in text
    assert "cannot be judged, because the reference is not a line;" in text

"""Capabilities along a study's runs: measured beside the losses, without touching them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forgetting.capabilities.newtask import forward_kl
from forgetting.capabilities.study_runs import study_rows
from forgetting.config.schema import ModelConfig, StudyConfig, validate
from forgetting.data.windows import Windows
from forgetting.errors import UsageError
from forgetting.reporting.capabilities import study_section
from forgetting.reporting.capabilities_chart import Line, chart, nice
from forgetting.studies.conclude import conclude
from forgetting.studies.conclude import study as run_study

pytestmark = pytest.mark.full


def configuration(tiny_model: Path, corpora: Path, asked: dict[str, Any] | None, *, steps: int = 4) -> StudyConfig:
    fields = {
        "model": {"source": str(tiny_model)},
        "text": {"source": str(corpora / "general.jsonl")},
        "datasets": {"chat": {"source": str(corpora / "chat.jsonl")}},
        "methods": [{"name": "lora", "rank": [1, 2]}],
        "context": 32,
        "training": {"steps": steps, "batch_size": 4, "learning_rate": 0.02, "warmup_steps": 1},
        "measure": {"start": 2, "every": 2},
    }
    return validate(fields | ({"capabilities": asked} if asked else {}), where="test")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "towns.jsonl"
    rows = [
        {"prompt": f"the old town {w}", "choices": ["bread", "iron"], "answer": i % 2} for i, w in enumerate("abcdefgh")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def finished(tiny_model: Path, corpora: Path, suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("studies") / "asked"
    run_study(configuration(tiny_model, corpora, {"suites": [str(suite)], "steps": [2, 4]}), out)
    return out


def test_each_run_is_asked_at_each_chosen_step_and_the_report_shows_it(finished: Path) -> None:
    rows = study_rows(finished)
    assert sorted({row["step"] for row in rows}) == [2, 4]
    assert len(rows) == 4
    for row in rows:
        assert 0 <= row["agreement"] <= 1
        assert row["newtask_kl"] > 0
        assert row["forgetting"] is not None
    page = (finished / "report.html").read_text()
    assert 'id="capabilities"' in page
    assert "forward KL on the new task" in page
    json.dumps(rows, allow_nan=False)


def test_asking_changes_no_measurement(finished: Path, tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    run_study(configuration(tiny_model, corpora, None), tmp_path / "plain")
    for plain in (tmp_path / "plain").glob("runs/*/measurements.jsonl"):
        asked = finished / "runs" / plain.parent.name / "measurements.jsonl"
        for one, other in zip(plain.read_text().splitlines(), asked.read_text().splitlines(), strict=True):
            a, b = json.loads(one), json.loads(other)
            for row in (a, b):
                row.pop("train_seconds"), row.pop("measure_seconds"), row.pop("peak_memory")
            assert a == b
    assert "capabilities" not in (tmp_path / "plain" / "report.html").read_text().split("</style>")[1][:2000]


def test_a_stored_study_is_not_asked_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetting.capabilities import harness
    from forgetting.capabilities.study_runs import evaluate_runs, plan_of
    from forgetting.store.folder import StudyFolder

    monkeypatch.setattr(harness, "as_lm", lambda *a, **k: pytest.fail("asked again"))
    assert len(evaluate_runs(finished, plan_of(StudyFolder.open(finished).config()))) == 2
    assert conclude(finished).report.exists()


def test_wrong_sections_are_named(tiny_model: Path, corpora: Path) -> None:
    with pytest.raises(UsageError, match="3 is not a measured step"):
        configuration(tiny_model, corpora, {"steps": [3]})
    with pytest.raises(UsageError, match="'news' is none of"):
        configuration(tiny_model, corpora, {"datasets": ["news"]})
    with pytest.raises(UsageError, match="capabilities"):
        configuration(tiny_model, corpora, {"suits": ["knowledge"]})


def test_forward_kl_is_its_definition(tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from forgetting.models.loading import load_base

    torch.manual_seed(0)
    model = load_base(ModelConfig(source=str(tiny_model))).model
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    ids = np.random.default_rng(0).integers(3, 20, size=(3, 10)).astype(np.int32)
    predicted = np.ones((3, 10), bool)
    predicted[:, 0] = False
    windows = Windows(
        input_ids=ids.ravel(),
        predicted=predicted.ravel(),
        offsets=np.arange(0, 31, 10),
        documents=np.arange(3, dtype=np.int32),
        document_ids=("a", "b", "c"),
    )
    found = forward_kl(tuned, windows, tuned)
    tuned.eval()
    batch = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        after = tuned(batch).logits.log_softmax(-1)
        with tuned.disable_adapter():
            before = tuned(batch).logits.log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1)[:, :-1].numpy()
    assert found.value == pytest.approx(kl.mean(), rel=1e-4)
    assert found.se == pytest.approx(kl.mean(axis=1).std(ddof=1) / np.sqrt(3), rel=1e-4)


def test_charts_are_svg_with_everything_escaped() -> None:
    made = chart([Line('<b>"x', "var(--s0)", 0, [(0.1, 50.0, 40.0, 60.0)])], 90.0, "L_f <x>", "right (%)")
    assert "<b>" not in made
    assert "&lt;b&gt;" in made
    assert made.count("<svg") == 1
    assert nice(0, 0.37) == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert "Nothing" in chart([], 1.0, "x", "y")
    assert study_section([], {}, {}) == ""

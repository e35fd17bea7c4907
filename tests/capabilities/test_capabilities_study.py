"""Capabilities of a study's runs: measured along with the losses, without changing them."""

from __future__ import annotations

import json
import shutil
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


def test_a_study_that_was_moved_asks_its_own_copy_of_the_items(
    finished: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forgetting.capabilities import harness
    from forgetting.capabilities.study_runs import evaluate_runs, plan_of
    from forgetting.capabilities.suites import Plan
    from forgetting.store.folder import StudyFolder

    moved, away, lines = tmp_path / "moved", suite.with_name("away"), []
    shutil.copytree(finished, moved)
    suite.rename(away)
    try:
        monkeypatch.setattr(harness, "as_lm", lambda *a, **k: pytest.fail("asked again"))
        evaluate_runs(moved, plan_of(StudyFolder.open(moved).config()), tell=lines.append)
        assert any("towns.jsonl: no such file; using the copy of its items" in line for line in lines)
        with pytest.raises(UsageError, match=r"gone\.jsonl: no such file"):
            evaluate_runs(moved, Plan((str(suite.with_name("gone.jsonl")),)))
    finally:
        away.rename(suite)
    assert conclude(moved).report.exists()


def test_changed_items_are_refused_if_runs_cannot_be_asked_again(finished: Path, suite: Path, tmp_path: Path) -> None:
    """The runs were also asked at step 2, of which no adapter is stored."""
    from forgetting.capabilities.study_runs import evaluate_runs, plan_of
    from forgetting.store.folder import StudyFolder

    copy, before = tmp_path / "copy", suite.read_text()
    shutil.copytree(finished, copy)
    stored = {file: file.read_bytes() for file in (copy / "capabilities").rglob("*.jsonl") if "tasks" not in file.parts}
    suite.write_text(before.replace("the old town a", "the new town a"))
    try:
        with pytest.raises(UsageError, match=r"towns: 1 item is new or changed since .*@2 answered, and"):
            evaluate_runs(copy, plan_of(StudyFolder.open(copy).config()))
        assert {file: file.read_bytes() for file in stored} == stored
        for folder in copy.glob("capabilities/*@2"):
            shutil.rmtree(folder)
        evaluate_runs(copy, plan_of(StudyFolder.open(copy).config()))
    finally:
        suite.write_text(before)
    assert {row["step"] for row in study_rows(copy)} == {4}


def test_a_run_that_was_deleted_and_runs_again_is_asked_again(
    tiny_model: Path, corpora: Path, suite: Path, tmp_path: Path
) -> None:
    """Its id is the same, but its data may differ: the old answers are of other weights."""
    chats, out = tmp_path / "corpora" / "chat.jsonl", tmp_path / "study"
    shutil.copytree(corpora, chats.parent)
    config = configuration(tiny_model, chats.parent, {"suites": [str(suite)], "ranks": [1]})
    run_study(config, out)
    before = study_rows(out)
    chats.write_text("".join(chats.read_text().splitlines(keepends=True)[::2]))
    shutil.rmtree(out / "runs")
    run_study(config, out)
    (one,), (other,) = before, study_rows(out)
    assert one["run_id"] == other["run_id"]
    assert one["newtask_kl"] != other["newtask_kl"]


def test_more_items_are_asked_of_finished_runs_as_if_they_had_been_from_the_start(
    tiny_model: Path, corpora: Path, suite: Path, tmp_path: Path
) -> None:
    def asking(**asked: Any) -> StudyConfig:
        return configuration(tiny_model, corpora, {"suites": [str(suite)]} | asked if asked else None)

    out, planned = tmp_path / "grown", tmp_path / "planned"
    run_study(asking(), out)
    with pytest.raises(
        UsageError, match=r"capabilities: run chat-lora-r1-s0-\w+ is past step 2, where the new questions would be"
    ):
        run_study(asking(steps=[2, 4]), out)
    run_study(asking(limit=3), out)
    run_study(asking(limit=6), out)
    run_study(asking(limit=6), planned)
    grown, whole = study_rows(out), study_rows(planned)
    assert [row["n"] for row in grown] == [6, 6]
    for one, other in zip(grown, whole, strict=True):  # in other batches, so that log-likelihoods are rounded otherwise
        shares = {name for name, value in other.items() if isinstance(value, float)}
        assert {name: one[name] for name in shares} == pytest.approx({name: other[name] for name in shares}, rel=1e-4)
        assert {**one, **dict.fromkeys(shares)} == {**other, **dict.fromkeys(shares)}
    with pytest.raises(UsageError, match=r"capabilities\.limit: there 6, now 3: items can only be added"):
        run_study(asking(limit=3), out)
    with pytest.raises(
        UsageError, match=r"capabilities\.max_new_tokens: there 64, now 8: the stored answers belong to"
    ):
        run_study(asking(limit=6, max_new_tokens=8), out)


def test_a_lengthened_run_keeps_the_answers_of_the_shorter_one(
    finished: Path, tiny_model: Path, corpora: Path, suite: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "grown"))
    asked = {"suites": [str(suite)], "steps": [2, 4]}
    with pytest.raises(UsageError, match=r"is past step 2, where the new questions would be"):
        run_study(configuration(tiny_model, corpora, asked | {"suites": [str(suite), "knowledge"]}), out)
    run_study(configuration(tiny_model, corpora, asked | {"steps": [2, 4]}, steps=6), out)
    run_study(configuration(tiny_model, corpora, asked | {"steps": [2, 4]}, steps=6), tmp_path / "planned")
    assert study_rows(out) == study_rows(tmp_path / "planned")


def test_a_study_of_an_earlier_version_still_reads(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "old"
    shutil.copytree(finished, copy)
    expected = study_rows(finished)
    for file in [meta.with_name("towns.jsonl") for meta in copy.glob("capabilities/*/meta.json")]:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        later = ("request_hash", "responses", "higher_is_better")
        old = [{name: value for name, value in row.items() if name not in later} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in old))
        meta = json.loads(file.with_name("meta.json").read_text())
        meta["suites"]["towns"] |= {"content": "0" * 16, "metric": None}
        file.with_name("meta.json").write_text(json.dumps(meta))
    assert study_rows(copy) == expected
    assert conclude(copy).report.exists()


def test_arguments_override_the_studys_own_plan() -> None:
    from forgetting.capabilities.settings import Settings
    from forgetting.capabilities.study_runs import _over
    from forgetting.capabilities.suites import Plan

    section = Plan(("knowledge",), Settings(limit=300), "a.csv", "b.csv", max_generated=32)
    assert _over(section, Plan()) == section
    given = Plan(settings=Settings(metric="acc", batch_size=4), harmful="c.csv", include=("x",))
    merged = _over(section, given)
    assert merged.settings == Settings(limit=300, metric="acc", batch_size=4)
    assert (merged.harmful, merged.harmless, merged.include, merged.max_generated) == ("c.csv", "b.csv", ("x",), 32)


def test_wrong_sections_are_named(tiny_model: Path, corpora: Path) -> None:
    with pytest.raises(UsageError, match="3 is not a measured step"):
        configuration(tiny_model, corpora, {"steps": [3]})
    with pytest.raises(UsageError, match="'news' is not a data set"):
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

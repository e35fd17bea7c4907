"""Checkpoints of a run in one `measure`: rows of `measure`, by step, with paired changes; what is broken is named."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_measure_command import call, perturb, save_adapter
from transformers import AutoModelForCausalLM

import forgetting
from forgetting.errors import UsageError
from forgetting.measuring import base_targets
from forgetting.models import checkpoints, sources
from forgetting.reporting.checkpoints import render

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a trainer leaves: adapters of 2, 10 and 100 steps, the last one with a name that says another step."""
    folder = tmp_path_factory.mktemp("run")
    for step, scale in ((2, 0.1), (10, 0.2), (90, 0.4)):
        save_adapter(tiny_model, folder / f"checkpoint-{step}", scale=scale)
    (folder / "checkpoint-90" / "trainer_state.json").write_text('{"global_step": 100}', "utf-8")
    return folder


def slow_change(after: Any, before: Any, documents: Any) -> tuple[float, float]:
    """Mean and standard error of the difference, by plain loops over documents."""
    sums: dict[int, list[float]] = {}
    for one, other, document in zip(after, before, documents, strict=True):
        sums.setdefault(int(document), []).append(float(one) - float(other))
    n = sum(map(len, sums.values()))
    mean = sum(sum(values) for values in sums.values()) / n
    squares = sum(sum(value - mean for value in values) ** 2 for values in sums.values())
    return mean, math.sqrt(len(sums) / (len(sums) - 1) * squares) / n


def test_rows_are_those_of_measure_and_the_base_is_passed_once(
    tiny_model: Path, run: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"text": str(corpora / "general.jsonl"), "context": 32}
    alone = [
        forgetting.measure(tiny_model, run / f"checkpoint-{n}", cache_dir=None, **how).to_dict() for n in (2, 10, 90)
    ]
    passes: list[int] = []
    real: Callable[..., Any] = base_targets.compute_arrays
    monkeypatch.setattr(base_targets, "compute_arrays", lambda *a, **k: passes.append(1) or real(*a, **k))
    seen: list[int] = []
    curve = forgetting.measure_checkpoints(
        tiny_model, run, cache_dir=None, each=lambda so_far: seen.append(len(so_far.rows)), **how
    )
    assert len(passes) == 1
    assert seen == [1, 2, 3]
    assert [row.step for row in curve.rows] == [2, 10, 100]
    found = curve.to_dict()
    assert json.loads(json.dumps(found)) == found
    own = {name for name in alone[0] if name in found["checkpoints"][0]} - {"notices"}
    assert {"forgetting", "forgetting_se", "kl", "agreement", "data_loss_tuned_se", "sha256"} <= own
    for row, one in zip(found["checkpoints"], alone, strict=True):
        assert {name: row[name] for name in own} == {name: one[name] for name in own}
    documents = curve.first.windows.token_documents()
    assert curve.rows[0].change is None
    assert found["checkpoints"][0]["forgetting_change"] is None
    for before, after in zip(curve.rows, curve.rows[1:], strict=False):
        slow = slow_change(after.measurement.change, before.measurement.change, documents)
        assert after.change is not None
        assert (after.change.value, after.change.se) == pytest.approx(slow, abs=1e-9)
        assert after.change.value == pytest.approx(after.forgetting.value - before.forgetting.value, abs=1e-6)
    assert found["not_measured"] == []
    assert list(curve.to_frame().index) == [2, 10, 100]
    assert len(curve.figure().data[0].x) == 3
    assert render(curve).count('<circle class="') == 3


def test_changes_on_too_few_documents_are_not_called_indistinguishable(tiny_model: Path, run: Path) -> None:
    text = ["the old river went to the town . a smith sold iron ."] * 2 + ["the new boat came south ."]
    curve = forgetting.measure_checkpoints(tiny_model, run, text=text, context=8)
    assert curve.sentence().endswith("2 documents, too few to test the changes between checkpoints (at least 5)")


def test_full_models_and_any_order(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    for step, scale in ((20, 1.0), (3, 0.02)):
        model = perturb(AutoModelForCausalLM.from_pretrained(tiny_model), scale)
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    given = [tmp_path / "checkpoint-20", tmp_path / "checkpoint-3", tiny_model]
    with pytest.raises(UsageError, match=r"its step is unknown: it has no trainer_state.json"):
        forgetting.measure_checkpoints(tiny_model, given)
    shutil.copytree(tiny_model, tmp_path / "step0")
    given[2] = tmp_path / "step0"
    curve = forgetting.measure_checkpoints(
        tiny_model, given, text=str(corpora / "general.jsonl"), context=32, noise_floor=True
    )
    assert [row.step for row in curve.rows] == [0, 3, 20]
    assert curve.rows[0].forgetting.value == 0.0
    assert curve.remark(curve.rows[0]) == "within the noise floor"
    assert curve.remark(curve.rows[2]) == ""
    assert np.isfinite(curve.p_holm[3])
    assert 'class="unsure"' in render(curve)
    assert 'class="band"' in render(curve)


def test_the_command_prints_the_curve_and_keeps_what_came_before_a_broken_one(
    tiny_model: Path, run: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "a run"
    shutil.copytree(run, folder)
    text = ("--text", corpora / "general.jsonl", "--context", 32)
    page, table = tmp_path / "page.html", tmp_path / "table.md"
    code, out, err = call(
        monkeypatch, capsys, "measure", tiny_model, folder, *text, "--html", page, "--markdown", table
    )
    assert code == 0, err
    assert "3 checkpoints against" in out
    lines = [line.split()[0] for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert lines == ["3", "2", "10", "100"]
    assert f"forgetting measure {tiny_model} '{folder}/checkpoint-90' --text" in out
    assert "--context 32 --html page.html" in out
    assert "<svg" in page.read_text("utf-8")
    assert table.read_text("utf-8").count("\n|") == 5
    weights = folder / "checkpoint-10" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, out, err = call(monkeypatch, capsys, "measure", tiny_model, folder, *text, "--json")
    assert code in (1, 2)
    assert f"{folder}/checkpoint-10" in err
    found = json.loads(out)
    assert [row["step"] for row in found["checkpoints"]] == [2]
    assert found["not_measured"] == [10, 100]
    (folder / "checkpoint-10" / "adapter_config.json").unlink()
    code, out, err = call(monkeypatch, capsys, "measure", tiny_model, folder, *text)
    assert (code, out) == (2, "")
    assert "checkpoint-10" in err
    code, _, err = call(monkeypatch, capsys, "measure", tiny_model, run, *text, "--tolerance", 0.01)
    assert code == 2
    assert "--tolerance: several checkpoints are measured on the whole text" in err
    code, out, _ = call(monkeypatch, capsys, "measure", tiny_model, run / "checkpoint-10", *text, "--markdown", table)
    assert "| agreement" in table.read_text("utf-8")
    assert f"forgetting evaluate {tiny_model} {run}/checkpoint-10" in out
    shutil.copytree(run / "checkpoint-2", folder, dirs_exist_ok=True)  # the trainer's last model beside its checkpoints
    code, out, _ = call(monkeypatch, capsys, "measure", tiny_model, folder, *text)
    assert code == 0
    assert f"checkpoints, too: forgetting measure {tiny_model} '{folder}/checkpoint-2' '{folder}/checkpoint-10'" in out


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *(("checkpoint-100", 100), ("step1000", 1000), ("model_global_step-7", 7), ("0042", 42)),
        *(("adapter-2", None), ("lora-r16", None), ("final", None)),
    ],
)
def test_steps_of_names(tmp_path: Path, name: str, step: int | None) -> None:
    (tmp_path / name).mkdir()
    source = sources.find(str(tmp_path / name))
    if step is None:
        with pytest.raises(UsageError, match="its step is unknown"):
            checkpoints.step_of(source)
    else:
        assert checkpoints.step_of(source) == step


def test_two_of_one_step_and_a_broken_state_are_refused(tiny_model: Path, run: Path, tmp_path: Path) -> None:
    base = sources.find(str(tiny_model))
    other = shutil.copytree(run / "checkpoint-2", tmp_path / "other-step-2")
    with pytest.raises(UsageError, match="both have step 2; give those of one run"):
        checkpoints.find([str(run), str(other)], base)
    (other / "trainer_state.json").write_text('{"global_step": "2"}', "utf-8")
    with pytest.raises(UsageError, match="global_step '2': must be a whole number"):
        checkpoints.find([str(other)], base)

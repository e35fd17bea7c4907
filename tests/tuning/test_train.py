"""One run: numbers against a slow twin, order of the data, notices, and saved weights."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from forgetting.config.schema import ModelConfig
from forgetting.data.windows import Windows
from forgetting.errors import UsageError
from forgetting.models.loading import load_base
from forgetting.store.folder import StudyFolder
from forgetting.store.table import load_table
from forgetting.studies.engines import Local
from forgetting.studies.inputs import StudyInputs
from forgetting.studies.study import study
from forgetting.tuning.grid import expand_runs
from forgetting.tuning.run import training_order
from forgetting.tuning.trainer import by_length
from short_study import configure


def slow_losses(model: Any, windows: Windows, base: Any) -> list[tuple[str, float, float, float, bool]]:
    """(document, -log p(true), -log p(base's top), base's -log p of it, same top): one token at a time, in float64."""
    rows = []
    for w in range(len(windows)):
        ids, predicted = windows.window(w)
        with torch.no_grad():
            tuned = torch.log_softmax(model(input_ids=torch.tensor(ids[None].astype(int))).logits[0].double(), -1)
            before = torch.log_softmax(base(input_ids=torch.tensor(ids[None].astype(int))).logits[0].double(), -1)
        for t in range(1, len(ids)):
            if predicted[t]:
                top = int(before[t - 1].argmax())
                rows.append(
                    (
                        windows.document_ids[windows.documents[w]],
                        -float(tuned[t - 1, ids[t]]),
                        -float(tuned[t - 1, top]),
                        -float(before[t - 1, top]),
                        int(tuned[t - 1].argmax()) == top,
                    )
                )
    return rows


def slow_mean(values: list[float], documents: list[str]) -> tuple[float, float]:
    """Mean over tokens, and its standard error from the variance of the documents' sums."""
    mean = sum(values) / len(values)
    names = sorted(set(documents))
    sums = [sum(v - mean for v, d in zip(values, documents, strict=True) if d == name) for name in names]
    count = len(names)
    return mean, math.sqrt(count / (count - 1) * sum(s * s for s in sums)) / len(values)


@pytest.mark.full
def test_stored_numbers_equal_the_slow_twin_on_the_saved_adapter(
    tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    config = configure(tiny_model, corpora)
    result = study(config, tmp_path / "s", engine=Local(1))
    row = result.table[result.table["step"] == 8].iloc[0]
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    (run,) = result.folder.runs()
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model)
    tuned = PeftModel.from_pretrained(loaded, run.path / "adapter").eval()
    inputs = StudyInputs(config)
    _, heldout = inputs.dataset("chat")
    finetune = slow_losses(tuned, heldout, base)
    general = slow_losses(tuned, inputs.text, base)
    expected = {
        "finetune_loss": slow_mean([r[1] for r in finetune], [r[0] for r in finetune]),
        "forgetting_loss": slow_mean([r[2] for r in general], [r[0] for r in general]),
        "forgetting_floor": slow_mean([r[3] for r in general], [r[0] for r in general]),
        "forgetting": slow_mean([r[2] - r[3] for r in general], [r[0] for r in general]),
        "agreement": slow_mean([float(r[4]) for r in general], [r[0] for r in general]),
        "data_loss_tuned": slow_mean([r[1] for r in general], [r[0] for r in general]),
    }
    for name, (value, se) in expected.items():
        assert row[name] == pytest.approx(value, rel=2e-6), name
        assert row[f"{name}_se"] == pytest.approx(se, rel=1e-4), name
    assert row["finetune_tokens"] == len(finetune)
    assert row["text_tokens"] == len(general)
    assert row["finetune_documents"] == len({r[0] for r in finetune})
    assert row["forgetting"] > 0.01
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["checkpoint-8"]


TRAINING = {"steps": 8, "batch_size": 4, "warmup_steps": 1, "learning_rate": 1e-2}
Losses = Callable[..., list[float]]


@pytest.fixture(scope="module")
def losses_with(tiny_model: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Losses:
    """Fine-tuning losses of a run with other training options than `TRAINING`; each is trained once."""

    @functools.cache
    def losses(**changes: Any) -> list[float]:
        config = configure(tiny_model, corpora, training=TRAINING | changes)
        return study(config, tmp_path_factory.mktemp("run") / "s", engine=Local(1)).table["finetune_loss"].tolist()

    return losses


@pytest.mark.full
def test_gradient_accumulation_trains_as_one_batch_does(losses_with: Losses) -> None:
    # answers differ in length: a mean of means over micro-batches would be another loss
    np.testing.assert_allclose(losses_with(), losses_with(micro_batch_size=1), rtol=2e-5)


@pytest.mark.full
@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adamw"},
        {"learning_rate": 2e-2},
        {"warmup_steps": 5},
        {"max_grad_norm": 1e-3},
        {"schedule": "linear"},
        {"schedule": "cosine"},
        {"optimizer": "adamw", "weight_decay": 0.5},
        {"batch_size": 8},
    ],
    ids=lambda change: "-".join(f"{k}={v}" for k, v in change.items()),
)
def test_every_training_option_changes_the_result(losses_with: Losses, change: dict[str, Any]) -> None:
    plain = losses_with(optimizer="adamw") if "weight_decay" in change else losses_with()
    changed = losses_with(**change)
    assert plain[0] == changed[0]
    assert plain[-1] != changed[-1]


@pytest.mark.full
def test_gradient_checkpointing_changes_memory_and_not_numbers(losses_with: Losses) -> None:
    np.testing.assert_allclose(losses_with(), losses_with(gradient_checkpointing=True), rtol=1e-6)


@pytest.mark.full
def test_same_seed_same_numbers_other_seed_other_numbers(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    tables = [
        study(configure(tiny_model, corpora, seeds=[seed]), tmp_path / str(i), engine=Local(1)).table
        for i, seed in enumerate((3, 3, 4))
    ]
    assert tables[0]["finetune_loss"].tolist() == tables[1]["finetune_loss"].tolist()
    assert tables[0]["finetune_loss"].tolist()[1:] != tables[2]["finetune_loss"].tolist()[1:]


def test_training_order_covers_all_windows_and_is_independent_of_the_method() -> None:
    order = training_order(10, 25, seed=1)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10].tolist() != order[10:20].tolist()
    assert training_order(10, 25, seed=1).tolist() == order.tolist()
    assert training_order(10, 25, seed=2).tolist() != order.tolist()


@pytest.mark.full
def test_notices_of_a_study(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    training = {"steps": 24, "batch_size": 4, "warmup_steps": 1, "schedule": "cosine"}
    result = study(configure(tiny_model, corpora, training=training), tmp_path / "s", engine=Local(1))
    notices = " | ".join(result.folder.runs()[0].read()["notices"])
    assert "made 3.0 passes" in notices
    assert "schedule cosine: a measured step does not equal a run that stopped there" in notices


@pytest.mark.full
def test_run_json_records_what_made_the_numbers(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    result = study(configure(tiny_model, corpora), tmp_path / "s", engine=Local(1))
    run = result.folder.runs()[0].read()
    assert run["status"] == "done"
    assert run["versions"].keys() >= {"torch", "transformers", "peft", "python"}
    assert run["base"].startswith("sha256:")
    assert run["data"].keys() == {"train", "heldout", "text", "base"}
    assert run["trainable_params"] == 4352
    assert expand_runs(result.folder.config())[0].model_dump(mode="json") == run["config"]


@pytest.mark.full
def test_text_that_changed_since_a_run_started_stops_it(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    general = tmp_path / "general.jsonl"
    general.write_text((corpora / "general.jsonl").read_text())
    config = configure(tiny_model, corpora, text={"source": str(general)})
    folder = study(config, tmp_path / "s", engine=Local(1)).folder
    folder.runs()[0].update(status="running")
    lines = general.read_text().splitlines()
    general.write_text("\n".join(lines[:-2]) + "\n")
    with pytest.raises(UsageError, match=r"the general text changed since run .* started; restore the old state"):
        study(config, tmp_path / "s", engine=Local(1))


def test_weights_and_text_given_as_auto_stay_in_their_dtype(tiny_model: Path) -> None:
    assert load_base(ModelConfig(source=str(tiny_model))).model.dtype == torch.float32
    half = load_base(ModelConfig(source=str(tiny_model), dtype="bfloat16"))
    assert half.model.dtype == torch.bfloat16
    assert half.key.endswith("/bfloat16")
    assert half.key.split("/")[0] == half.revision


@pytest.mark.full
def test_an_unfinished_study_has_a_readable_table(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    result = study(configure(tiny_model, corpora), tmp_path / "s", engine=Local(1))
    run = result.folder.runs()[0]
    content = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**content, "status": "running"}))
    assert set(load_table(tmp_path / "s")["status"]) == {"running"}
    assert StudyFolder.open(tmp_path / "s").config() == result.folder.config()


def test_a_run_trains_on_the_gpu_of_its_model_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from forgetting.config.schema import TrainingConfig
    from forgetting.tuning.trainer import _arguments

    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    arguments = _arguments(TrainingConfig(), 0, tmp_path, torch.device("cuda:1"))
    assert (str(arguments.device), arguments.n_gpu, arguments.train_batch_size) == ("cuda:1", 1, 32)
    assert chosen == [1]
    assert _arguments(TrainingConfig(), 0, tmp_path, torch.device("cpu")).device == torch.device("cpu")


def test_windows_of_a_step_are_sorted_by_length_within_it():
    order, lengths = np.array([3, 0, 1, 2, 2, 1, 0, 3]), np.array([5, 9, 5, 7])
    assert by_length(order, lengths, 4).tolist() == [1, 3, 0, 2, 1, 3, 2, 0]
    assert by_length(order, lengths, 2).tolist() == [3, 0, 1, 2, 1, 2, 3, 0]

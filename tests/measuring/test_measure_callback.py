"""The training callback: training stays bit-identical, its numbers equal those of `measure`, its rows are logged."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from test_measure_kernels import V, make_model, make_windows
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

import forgetting.measuring.measure as instrument
from forgetting.config.schema import ProbeConfig
from forgetting.errors import UsageError
from forgetting.measuring.callback import STORED, ForgettingCallback
from forgetting.measuring.forecast import forecast
from forgetting.measuring.quantities import of_text

WINDOWS = make_windows([9, 17, 2, 30, 30, 5], documents=[0, 0, 1, 1, 2, 3])


class Data(torch.utils.data.Dataset):
    def __init__(self, size=64):
        self.ids = np.random.default_rng(5).integers(0, V, (size, 12))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": torch.tensor(self.ids[i]), "labels": torch.tensor(self.ids[i])}


def arguments(folder, **options):
    defaults = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **{**defaults, **options})


def model_of(kind):
    set_seed(0)
    model = make_model("llama")
    if kind == "full":
        return model.train()
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], lora_dropout=0.3))


def train(folder, kind, callbacks=(), resume=None, **options):
    model = model_of(kind)
    set_seed(1)
    trainer = Trainer(model, arguments(folder, **options), train_dataset=Data(), callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.full
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_training_is_bit_identical_with_and_without_it(tmp_path, kind, accumulate):
    callback = ForgettingCallback(WINDOWS, every=2)
    with_it = train(tmp_path / "a", kind, [callback], gradient_accumulation_steps=accumulate)
    without = train(tmp_path / "b", kind, gradient_accumulation_steps=accumulate)
    with_callback, without_callback = weights(with_it), weights(without)
    assert all(torch.equal(with_callback[name], without_callback[name]) for name in without_callback)
    losses = [[x["loss"] for x in t.state.log_history if "loss" in x] for t in (with_it, without)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    assert [row["step"] for row in callback.rows] == [0, 2, 4, 6]
    assert callback.rows[0]["forgetting"] == 0
    assert callback.rows[0]["agreement"] == 1
    assert callback.rows[-1]["forgetting"] > 0.01
    assert callback.rows[-1]["forgetting_se"] > 0


def test_a_callback_that_is_added_to_a_second_trainer_logs_there(tmp_path):
    """Before, its rows went to the reporters of the first."""
    callback = ForgettingCallback(WINDOWS, every=3)

    class Reporter(TrainerCallback):
        def __init__(self):
            self.rows = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.rows += [state.global_step] if "forgetting/forgetting" in logs else []

    train(tmp_path / "a", "lora", [callback, first := Reporter()])
    trainer = Trainer(model_of("lora"), arguments(tmp_path / "b"), train_dataset=Data())
    trainer.add_callback(callback)
    trainer.add_callback(second := Reporter())
    trainer.train()
    assert first.rows == second.rows == [0, 3, 6]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_further_texts_are_measured_as_if_each_were_the_text(tmp_path, kind):
    other = make_windows([11, 4, 25], documents=[0, 1, 2])
    callback = ForgettingCallback(WINDOWS, texts={"chat": other, "code-2": WINDOWS}, every=3)
    trainer = train(tmp_path / "both", kind, [callback])
    alone = ForgettingCallback(other, every=3)
    train(tmp_path / "alone", kind, [alone])
    for row, own in zip(callback.rows, alone.rows, strict=True):
        for name in ("forgetting", "forgetting_se", "agreement"):
            assert row[of_text(name, "chat")] == own[name]
            assert row[of_text(name, "code-2")] == row[name]
    last = [x for x in trainer.state.log_history if "forgetting/chat/forgetting" in x][-1]
    assert last["forgetting/chat/forgetting"] == callback.rows[-1]["forgetting[chat]"]
    assert last["forgetting/chat/forgetting_se"] == callback.rows[-1]["forgetting[chat]_se"]
    stored = {path.name for path in (tmp_path / "both").glob("forgetting-base*.safetensors")}
    assert stored == (
        {"forgetting-base.safetensors", "forgetting-base-chat.safetensors"} | ({"forgetting-base-code-2.safetensors"})
        if kind == "full"
        else set()
    )
    for wrong, why in (({"a/b": other}, "the name 'a/b'"), ({"a": None}, "'a' is None"),
                       ({"a": ProbeConfig(probe="default")}, "only by measure, check, profile")):  # fmt: skip
        with pytest.raises(UsageError, match=why):
            ForgettingCallback(WINDOWS, texts=wrong)
    with pytest.raises(UsageError, match=r"texts without text: .* give text=\.\.\. too"):
        ForgettingCallback(texts={"chat": other})


@pytest.mark.full
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_last_row_is_what_measure_gives(tmp_path, kind):
    callback = ForgettingCallback(WINDOWS, every=4)
    trainer = train(tmp_path, kind, [callback])
    assert [row["step"] for row in callback.rows] == [0, 4, 6]
    base = None if kind == "lora" else make_model("llama")
    row = instrument.measure(base, trainer.model, text=WINDOWS).to_dict()
    for name, value in callback.rows[-1].items():
        if name not in ("step", "kept"):
            assert row[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.full
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_mixed_precision_is_measured_as_the_saved_model_is(tmp_path, kind, caplog):
    """Under autocast the model's forward runs in bfloat16, but its decoder, called on its own, does not."""
    callback = ForgettingCallback(WINDOWS, every=3)
    with caplog.at_level(logging.WARNING, logger="forgetting"):
        trainer = train(tmp_path, kind, [callback], bf16=True)
    assert "full logits" not in caplog.text
    assert callback.rows[0]["forgetting"] == 0
    fresh = make_model("llama")
    if kind == "full":
        fresh.load_state_dict(trainer.model.state_dict())
        row = instrument.measure(make_model("llama"), fresh, text=WINDOWS).to_dict()
    else:
        trainer.model.save_pretrained(tmp_path / "adapter")
        row = instrument.measure(None, PeftModel.from_pretrained(fresh, tmp_path / "adapter"), text=WINDOWS).to_dict()
    assert row["forgetting"] > 0.01
    for name, value in callback.rows[-1].items():
        if name not in ("step", "kept"):
            assert row[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.full
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_last_row_measures_the_final_model(tmp_path, kind, caplog):
    callback = ForgettingCallback(WINDOWS, every=2)
    set_seed(1)
    options = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    metric = {"metric_for_best_model": "eval_best", "load_best_model_at_end": True, "greater_is_better": True}
    trainer = Trainer(
        model_of(kind),
        arguments(tmp_path, **options, **metric),
        train_dataset=Data(),
        eval_dataset=Data(4),
        callbacks=[callback],
        compute_metrics=lambda _: {"best": float(callback.rows[-1]["step"] <= 2)},
    )
    with caplog.at_level(logging.WARNING, logger="forgetting"):
        trainer.train()
    assert [row["step"] for row in callback.rows] == [0, 2, 4, 6, 2]
    assert callback.rows[-1] == {**callback.rows[1], "kept": True}
    assert callback.rows[1] != callback.rows[3]
    assert "the model of step 2 is kept" in caplog.text
    row = instrument.measure(None if kind == "lora" else make_model("llama"), trainer.model, text=WINDOWS).to_dict()
    assert row["forgetting"] == pytest.approx(callback.rows[-1]["forgetting"], rel=1e-6)
    logged = [x["step"] for x in trainer.state.log_history if "forgetting/forgetting" in x]
    kept = [x["step"] for x in trainer.state.log_history if "forgetting_of_kept/forgetting" in x]
    assert (logged, kept) == ([0, 2, 4, 6], [6])


def test_the_default_grid_doubles(tmp_path):
    callback = ForgettingCallback(WINDOWS)
    train(tmp_path, "lora", [callback], max_steps=11)
    assert [row["step"] for row in callback.rows] == [0, 1, 2, 4, 8, 11]


@pytest.mark.full
def test_it_stops_at_the_budget(tmp_path):
    callback = ForgettingCallback(WINDOWS, every=1, budget=0.02)
    trainer = train(tmp_path, "lora", [callback], max_steps=50)
    assert trainer.state.global_step < 50
    assert callback.rows[-2]["forgetting"] > 0.02 >= callback.rows[-1]["forgetting"]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_resumed_run_measures_the_same(tmp_path, kind):
    whole = ForgettingCallback(WINDOWS, every=2)
    options = {"save_strategy": "steps", "save_steps": 2}
    train(tmp_path / "a", kind, [whole], **options)
    again = ForgettingCallback(WINDOWS, every=2)
    train(tmp_path / "a", kind, [again], resume=str(tmp_path / "a" / "checkpoint-2"), **options)
    assert again.rows[1:] == whole.rows[2:]


@pytest.mark.full
def test_a_resumed_full_run_without_its_targets_is_refused(tmp_path):
    train(tmp_path, "full", save_strategy="steps", save_steps=2)
    with pytest.raises(UsageError, match=STORED):
        train(tmp_path, "full", [ForgettingCallback(WINDOWS)], resume=str(tmp_path / "checkpoint-2"))


def test_an_adapter_that_is_not_the_identity_is_measured_against_the_base(tmp_path, caplog):
    """PEFT pull request 3419: prompt tuning starts far from the base model, so training looks like remembering."""
    set_seed(0)
    model = get_peft_model(make_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    callback = ForgettingCallback(WINDOWS)
    with caplog.at_level(logging.WARNING, logger="forgetting"):
        Trainer(model, arguments(tmp_path), train_dataset=Data(), callbacks=[callback]).train()
    assert "is not the identity" in caplog.text
    assert callback.rows[0]["forgetting"] > 0.05
    assert callback.rows[0]["forgetting_floor"] == callback.rows[-1]["forgetting_floor"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"bias": "all"}, "trains the base model's own biases"), ({"init_lora_weights": "pissa"}, "changes the base")],
)
def test_adapters_that_change_their_base_are_refused(tmp_path, options, message):
    model = get_peft_model(make_model("phi"), LoraConfig(r=2, target_modules=["q_proj"], **options))
    with pytest.raises(UsageError, match=message) as refused:
        Trainer(model, arguments(tmp_path), train_dataset=Data(), callbacks=[ForgettingCallback(WINDOWS)]).train()
    assert f"then measure: forgetting measure BASE {tmp_path}" in str(refused.value)  # there is no base model to give


def test_a_callback_of_two_trainers_logs_to_the_one_that_calls_it(tmp_path):
    class Seen(TrainerCallback):
        def __init__(self):
            self.steps = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.steps += [state.global_step] if "forgetting/forgetting" in logs else []

    callback, seen = ForgettingCallback(WINDOWS, every=2), [Seen(), Seen()]
    for one in seen:
        trainer = Trainer(model_of("lora"), arguments(tmp_path, max_steps=2), train_dataset=Data(), callbacks=[one])
        trainer.add_callback(callback)
        trainer.train()
    assert [one.steps for one in seen] == [[0, 2], [0, 2]]


def test_refusals():
    with pytest.raises(UsageError, match="every=0"):
        ForgettingCallback(WINDOWS, every=0)


@pytest.mark.full
def test_tensorboard_logs_forgetting(tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    callback = ForgettingCallback(WINDOWS, every=3)
    trainer = train(tmp_path, "lora", [callback], report_to=["tensorboard"])
    found = events.EventAccumulator(str(tmp_path / "tb"))
    found.Reload()
    logged = found.Scalars("train/forgetting/forgetting")
    assert [event.step for event in logged] == [0, 3, 6]
    np.testing.assert_allclose([e.value for e in logged], [r["forgetting"] for r in callback.rows], rtol=1e-6)
    in_history = [x for x in trainer.state.log_history if "forgetting/forgetting" in x]
    assert [x["step"] for x in in_history] == [0, 3, 6]
    assert len(found.Scalars("train/loss")) == 3


@pytest.mark.full
def test_mlflow_logs_forgetting(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    callback = ForgettingCallback(WINDOWS, every=3)
    train(tmp_path, "lora", [callback], report_to=["mlflow"])
    (path,) = tmp_path.glob("mlruns/*/*/metrics/forgetting/forgetting")
    lines = [line.split() for line in path.read_text().splitlines()]
    assert [int(line[2]) for line in lines] == [0, 3, 6]
    assert float(lines[-1][1]) == pytest.approx(callback.rows[-1]["forgetting"])
    mlflow.end_run()


SCRIPT = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_measure_callback import *
callback = ForgettingCallback(WINDOWS, every=2, batch_tokens=32)
trainer = train({out!r}, "lora", [callback], per_device_train_batch_size={batch})
if trainer.is_world_process_zero():
    trainer.model.save_pretrained({out!r})
    print("ROWS", json.dumps([trainer.args.world_size, callback.rows]))
"""


@pytest.mark.full
def test_trl_and_then_measure_on_the_saved_adapter(tmp_path, tiny_model, corpora):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    text = str(corpora / "general.jsonl")
    callback = ForgettingCallback(text, every=4)
    data = datasets.load_dataset(
        "json", data_files=str(corpora / "train.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    options = {"max_steps": 6, "learning_rate": 0.03, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    trainer = trl.SFTTrainer(
        str(tiny_model),
        args=trl.SFTConfig(output_dir=str(tmp_path), save_strategy="no", max_length=32, **options),
        train_dataset=data.select_columns(["text"]),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        callbacks=[callback],
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    row = instrument.measure(str(tiny_model), str(tmp_path / "adapter"), text=text, cache_dir=None).to_dict()
    assert [r["step"] for r in callback.rows] == [0, 4, 6]
    assert row["forgetting"] > 0.001
    assert {name: row[name] for name in callback.rows[-1] if name not in ("step", "kept")} == {
        name: value for name, value in callback.rows[-1].items() if name not in ("step", "kept")
    }


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    """With the same global batch, tokens are sharded over ranks and all measurements are equal."""
    results = []
    for processes, batch in ((1, 4), (2, 2)):
        path = tmp_path / f"train{processes}.py"
        path.write_text(
            SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path / str(processes)), batch=batch)
        )
        # On a CPU, `--cpu` starts several processes through MPI only; `--multi_gpu` is the torch launcher, and
        # `use_cpu` keeps the trainer off any GPU.
        kind = ["--multi_gpu"] if processes > 1 else ["--cpu"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *kind, "--num_processes", str(processes)]
        run = subprocess.run(
            [*command, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", str(path)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        line = next(line for line in run.stdout.splitlines() if line.startswith("ROWS"))
        results.append(json.loads(line.removeprefix("ROWS ")))
    (one, rows), (two, sharded) = results
    assert (one, two) == (1, 2)
    assert rows[0] == sharded[0]  # before training the models are the same, bit for bit
    saved = PeftModel.from_pretrained(model_of("full"), tmp_path / "2")
    row = instrument.measure(None, saved, text=WINDOWS, batch_tokens=32).to_dict()
    assert {name: row[name] for name in sharded[-1] if name not in ("step", "kept")} == {
        name: value for name, value in sharded[-1].items() if name not in ("step", "kept")
    }


SHARDED = """
import sys
from accelerate import state
from accelerate.utils import DistributedType

make = state.AcceleratorState.__init__

def as_on_gpus(self, *arguments, **options):  # accelerate shards on GPUs only; nothing else here needs one
    state.PartialState(cpu=True)
    if not state.AcceleratorState._shared_state:
        state.PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    make(self, *arguments, **options)

state.AcceleratorState.__init__ = as_on_gpus
"""


@pytest.mark.slow
def test_weights_that_accelerate_shards_are_measured(tmp_path):
    """Under `accelerate launch` with FSDP2 no process has the whole model; rows equal those of one process."""
    free = ForgettingCallback(WINDOWS, every=2, batch_tokens=32)
    train(tmp_path / "0", "full", [free])
    budget = (free.rows[1]["forgetting"] + free.rows[2]["forgetting"]) / 2
    alone = ForgettingCallback(WINDOWS, every=2, batch_tokens=32, budget=budget)
    train(tmp_path / "1", "full", [alone])
    assert [(row["step"], row["kept"]) for row in alone.rows] == [(0, False), (2, False), (4, False), (2, True)]
    path = tmp_path / "train.py"
    script = SCRIPT.replace('"lora"', '"full"').replace("tokens=32", f"tokens=32, budget={budget!r}")
    script = script.replace("trainer.model.save_pretrained({out!r})", "assert FSDP")
    script = script.replace("if trainer.is", "FSDP = type(trainer.model).__name__.startswith('FSDP')\nif trainer.is")
    path.write_text(SHARDED + script.format(tests=str(Path(__file__).parent), out=str(tmp_path / "2"), batch=2))
    options = {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--num_processes", "2"]
    run = subprocess.run(
        [
            *(*command, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
            *(f"--{name}={value}" for name, value in options.items()),
            str(path),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    line = next(line for line in run.stdout.splitlines() if line.startswith("ROWS"))
    processes, rows = json.loads(line.removeprefix("ROWS "))
    assert processes == 2
    assert rows[0] == alone.rows[0]
    for row, other in zip(rows, alone.rows, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


def test_the_forecast_uses_all_measurements_including_those_before_a_resume(tmp_path):
    """Logged with each measurement, with a decaying schedule; a resumed run uses the earlier points too."""
    text = make_windows([9] * 60, documents=[*range(60)])
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "learning_rate": 0.05}
    callback = ForgettingCallback(text, every=2, budget=50)
    trainer = train(tmp_path, "lora", [callback], **options)
    rows = [row for row in callback.rows if row["step"] <= 6]
    banded = forecast(
        [row["step"] for row in rows],
        [row["forgetting"] for row in rows],
        [row["forgetting_se"] for row in rows],
        end=8,
        budget=50,
        rates=[1 - step / 8 for step in range(8)],
    )
    expected = replace(banded, guide=True)
    assert callback.forecast == expected
    assert expected.low < expected.value < expected.high
    # bands are from runs of the miniature, so the text of another model's forecast has none
    assert str(expected).startswith("at step 8: about ")
    assert "[" in str(banded)
    assert "[" not in str(expected)
    logged = [x for x in trainer.state.log_history if "forgetting/forecast" in x]
    assert [x["step"] for x in logged][-1] == 6
    assert {name: logged[-1][f"forgetting/{name}"] for name in expected.logged()} == expected.logged()
    again = ForgettingCallback(text, every=2, budget=50)
    train(tmp_path, "lora", [again], resume=str(tmp_path / "checkpoint-4"), **options)
    assert again.forecast == expected

"""A budget restores the model within it; quantities serve `metric_for_best_model` and early stopping."""

from __future__ import annotations

import logging
import math
from typing import ClassVar

import pytest
import torch
from peft import LoraConfig
from test_measure_callback import WINDOWS, Data, arguments, model_of, weights
from test_measure_kernels import make_model
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, set_seed

import forgetting.measuring.measure as instrument
from forgetting.errors import UsageError
from forgetting.measuring.callback import ForgettingCallback

STEPS = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}


class Weights(TrainerCallback):
    """The weights after each step."""

    def __init__(self):
        self.at = {}

    def on_step_end(self, args, state, control, **kwargs):
        self.at[state.global_step] = {n: p.detach().clone() for n, p in kwargs["model"].named_parameters()}


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def trainer_of(folder, kind, callbacks, **options):
    model = model_of(kind)
    set_seed(1)
    return Trainer(
        model, arguments(folder, **options), train_dataset=Data(), eval_dataset=Data(4), callbacks=list(callbacks)
    )


def curve(folder, kind="lora", **options):
    """Forgetting after each step of a training without a budget, and the weights."""
    callback, seen = ForgettingCallback(WINDOWS, every=1), Weights()
    trainer_of(folder, kind, [callback, seen], max_steps=8, **options).train()
    return [row["forgetting"] for row in callback.rows], seen.at


def equal(trainer, expected):
    restored = weights(trainer)
    return all(torch.equal(restored[name], expected[name]) for name in expected)


@pytest.mark.full
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_last_model_within_the_budget_is_restored(tmp_path, kind, accumulate, caplog):
    at, seen = curve(tmp_path / "a", kind, gradient_accumulation_steps=accumulate)
    budget = (at[3] + at[4]) / 2
    assert at[:5] == sorted(at[:5])
    callback = ForgettingCallback(WINDOWS, every=1, budget=budget)
    trainer = trainer_of(tmp_path / "b", kind, [callback], max_steps=8, gradient_accumulation_steps=accumulate)
    with caplog.at_level(logging.WARNING, logger="forgetting"):
        trainer.train()
    assert "restored the model of step 3, the last measured one inside the budget" in caplog.text
    assert [(row["step"], row["kept"]) for row in callback.rows] == [*((i, False) for i in range(5)), (3, True)]
    assert callback.rows[-1] == {**callback.rows[3], "kept": True}
    assert equal(trainer, seen[3])
    base = None if kind == "lora" else make_model("llama")
    assert instrument.measure(base, trainer.model, text=WINDOWS).forgetting.value <= budget


def test_a_run_within_its_budget_keeps_its_last_model(tmp_path):
    callback = ForgettingCallback(WINDOWS, every=4, budget=10)
    trainer_of(tmp_path, "lora", [callback]).train()
    assert [(row["step"], row["kept"]) for row in callback.rows] == [(0, False), (4, False), (6, False)]


class StopAtEvaluation(TrainerCallback):
    """Stops training as early stopping does, at a step that is not on the grid."""

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == 3


def test_a_run_that_stops_between_measurements_is_measured_before_anything_is_restored(tmp_path):
    """Before, a run within its budget lost all steps after the last measured one."""

    def rows(budget):
        callback = ForgettingCallback(WINDOWS, every=2, budget=budget)
        trainer_of(tmp_path, "lora", [callback, StopAtEvaluation()], eval_strategy="steps", eval_steps=1).train()
        return [(row["step"], row["kept"]) for row in callback.rows], [row["forgetting"] for row in callback.rows]

    steps, at = rows(10)
    assert steps == [(0, False), (2, False), (3, False)]
    assert rows((at[1] + at[2]) / 2)[0] == [(0, False), (2, False), (3, False), (2, True)]


def test_the_untrained_model_may_be_the_only_one_within_the_budget(tmp_path, caplog):
    callback = ForgettingCallback(WINDOWS, every=2, budget=1e-9)
    with caplog.at_level(logging.WARNING, logger="forgetting"):
        trainer_of(tmp_path, "lora", [callback]).train()
    assert "restored the model of step 0" in caplog.text
    assert callback.rows[-1]["forgetting"] == 0


@pytest.mark.full
def test_the_best_evaluated_model_within_the_budget_is_restored(tmp_path):
    """The trainer's best model, by evaluation loss, is over the budget; evaluations are measured too."""
    at, seen = curve(tmp_path / "a", **STEPS)
    callback = ForgettingCallback(WINDOWS, every=100, budget=(at[4] + at[5]) / 2)
    options = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "max_steps": 8}
    trainer = trainer_of(tmp_path / "b", "lora", [callback], **STEPS, **options)
    trainer.train()
    losses = {x["step"]: x["eval_loss"] for x in trainer.state.log_history if "eval_loss" in x}
    best = min((2, 4), key=losses.__getitem__)
    assert list(losses) == [2, 4, 6]
    assert callback.rows[-1]["step"] == best
    assert callback.rows[-1]["kept"]
    assert equal(trainer, seen[best])


@pytest.mark.full
@pytest.mark.parametrize("metric", ["forgetting/forgetting", "eval_forgetting/forgetting_loss"])
def test_the_best_model_and_early_stopping_by_forgetting(tmp_path, metric):
    """Forgetting grows, so the first evaluation is the best, and the third exceeds the patience of two."""
    callback = ForgettingCallback(WINDOWS, every=100)
    options = {"load_best_model_at_end": True, "metric_for_best_model": metric, "greater_is_better": False}
    trainer = trainer_of(tmp_path, "lora", [EarlyStoppingCallback(2), callback], max_steps=20, **STEPS, **options)
    trainer.train()
    assert trainer.state.global_step == 6
    assert trainer.state.best_global_step == 2
    assert trainer.state.best_metric == callback.rows[1][metric.rpartition("/")[2]]
    assert [(row["step"], row["kept"]) for row in callback.rows] == [
        (0, False), (2, False), (4, False), (6, False), (2, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "greater", "message"),
    [
        ("forgetting/forgetting", True, "keeps the model that forgot most; set greater_is_better=False"),
        ("forgetting/agreement", False, "set greater_is_better=True"),
        ("eval_forgetting/forgeting", False, "did you mean 'forgetting/forgetting'"),
    ],
)
def test_unusable_metrics_are_refused(tmp_path, metric, greater, message):
    options = {"metric_for_best_model": metric, "greater_is_better": greater}
    with pytest.raises(UsageError, match=message):
        trainer_of(tmp_path, "lora", [ForgettingCallback(WINDOWS)], **options).train()
    with pytest.raises(UsageError, match="must be a positive number"):
        ForgettingCallback(WINDOWS, budget=0.0)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_resumed_run_restores_the_same_model(tmp_path, kind):
    """Resumed from a checkpoint that is already over the budget; the model within it is stored in that checkpoint."""
    at, seen = curve(tmp_path / "a", kind)
    budget = (at[3] + at[4]) / 2
    saved = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    callback = ForgettingCallback(WINDOWS, every=1, budget=budget)
    trainer_of(tmp_path / "b", kind, [callback, Stop(4)], **saved).train()
    again = ForgettingCallback(WINDOWS, every=1, budget=budget)
    trainer = trainer_of(tmp_path / "b", kind, [again], **saved)
    trainer.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    assert again.rows[-1] == callback.rows[-1]
    assert equal(trainer, seen[3])
    (tmp_path / "b" / "checkpoint-4" / "forgetting-kept.safetensors").write_bytes(b"no weights")
    lost = ForgettingCallback(WINDOWS, every=1, budget=budget)
    trainer = trainer_of(tmp_path / "b", kind, [lost], **saved)
    trainer.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    assert not lost.rows[-1]["kept"]


class Score(TrainerCallback):
    """A metric of each evaluation that falls with every step, so that the first evaluated model is the best."""

    def on_evaluate(self, args, state, control, **kwargs):
        kwargs["metrics"]["eval_score"] = -float(state.global_step)


def test_a_resumed_run_knows_the_score_of_the_model_in_its_checkpoint(tmp_path, caplog):
    """Before, the best model counted as one without a score, and the next one, though worse, replaced it."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True, "max_steps": 6}

    def rows(budget, *more, resume=None):
        callback = ForgettingCallback(WINDOWS, every=100, budget=budget)
        trainer = trainer_of(tmp_path, "lora", [Score(), callback, *more], **STEPS, **best)
        trainer.train(resume_from_checkpoint=resume)
        return [(row["step"], row["kept"]) for row in callback.rows]

    rows(10, Stop(2))
    resumed = str(tmp_path / "checkpoint-2")
    assert rows(10, resume=resumed) == [(2, False), (4, False), (6, False), (2, True)]
    rows(10, Stop(4))
    with caplog.at_level(logging.WARNING, logger="forgetting"):
        rows(1e-9, resume=str(tmp_path / "checkpoint-4"))
    assert "no model inside the budget of 1e-09" in caplog.text, "the stored one is above the new budget"


class Scripted(Trainer):
    """Its evaluations give these losses, by step."""

    losses: ClassVar = {}

    def evaluation_loop(self, *args, **options):
        found = super().evaluation_loop(*args, **options)
        found.metrics["eval_loss"] = self.losses[self.state.global_step]
        return found


def scripted(folder, losses, callbacks, **options):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "max_steps": 8}
    model = model_of("lora")
    set_seed(1)
    asked = arguments(folder, **STEPS | best | options)
    trainer = Scripted(model, asked, train_dataset=Data(), eval_dataset=Data(4), callbacks=callbacks)
    trainer.losses = losses
    return trainer


@pytest.mark.full
@pytest.mark.parametrize(("budget", "step"), [(None, 4), (10, 6)])
def test_the_best_evaluated_model_may_have_no_checkpoint(tmp_path, budget, step):
    """The trainer then restores the best model that it saved; within a budget, our copy is that of the best step."""
    _, seen = curve(tmp_path / "a", **STEPS)
    callback = ForgettingCallback(WINDOWS, every=1, budget=budget)
    trainer = scripted(tmp_path / "b", {2: 5.0, 4: 3.0, 6: 1.0, 8: 4.0}, [callback], save_steps=4)
    trainer.train()
    assert (trainer.state.best_global_step, callback.rows[-1]["step"]) == (6, step)
    assert callback.rows[-1] == {**callback.rows[step], "kept": True}
    assert equal(trainer, seen[step])


@pytest.mark.full
def test_a_run_resumed_at_its_best_model_restores_it(tmp_path):
    losses = {2: 5.0, 4: 1.0, 6: 4.0, 8: 3.0}
    scripted(tmp_path, losses, [ForgettingCallback(WINDOWS, budget=10), Stop(4)]).train()
    callback = ForgettingCallback(WINDOWS, budget=10)
    scripted(tmp_path, losses, [callback]).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert (callback.rows[-1]["step"], callback.rows[-1]["kept"]) == (4, True)


@pytest.mark.full
def test_an_evaluation_that_gives_nan_is_not_the_best(tmp_path):
    callback = ForgettingCallback(WINDOWS, budget=10)
    scripted(tmp_path, {2: math.nan, 4: 1.0, 6: 4.0, 8: 3.0}, [callback]).train()
    assert (callback.rows[-1]["step"], callback.rows[-1]["kept"]) == (4, True)


@pytest.mark.full
@pytest.mark.parametrize("name", ["SFT", "packed", "DPO", "GRPO"])
def test_the_adapter_that_trl_saves_passes_the_check(tmp_path, name, tiny_model, corpora):
    """The adapter that a TRL trainer saves is the one within the budget, as `check` with that budget confirms."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    text = str(corpora / "general.jsonl")
    options = {
        "output_dir": str(tmp_path), "save_strategy": "no", "learning_rate": 0.05, "max_steps": 4,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 4,
    }  # fmt: skip
    words = ["one two", "three", "two one", "one"] * 4
    pairs = {"prompt": words, "chosen": [f" {word} two" for word in words], "rejected": [" three"] * 16}
    peft = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")

    def trainer_with(callback):
        set_seed(0)
        shared = {"peft_config": peft, "callbacks": [callback]}
        match name:
            case "SFT" | "packed":
                config = trl.SFTConfig(**options, max_length=16, packing=name == "packed")
                rows = datasets.Dataset.from_dict({"text": [f"{word} three one two" for word in words]})
                return trl.SFTTrainer(str(tiny_model), args=config, train_dataset=rows, **shared)
            case "DPO":
                config = trl.DPOConfig(**options, max_length=16)
                return trl.DPOTrainer(
                    str(tiny_model), args=config, train_dataset=datasets.Dataset.from_dict(pairs), **shared
                )
            case _:
                config = trl.GRPOConfig(**options, max_completion_length=4, num_generations=4)
                rows = datasets.Dataset.from_dict({"prompt": words})
                reward = lambda completions, **_: [float(len(text)) for text in completions]  # noqa: E731
                return trl.GRPOTrainer(str(tiny_model), reward, args=config, train_dataset=rows, **shared)

    free = ForgettingCallback(text, every=1)
    trainer_with(free).train()
    at = [row["forgetting"] for row in free.rows]
    last = max(i for i in range(4) if at[i] == max(at[: i + 1]) < at[i + 1])  # within it; the next is not
    callback = ForgettingCallback(text, every=1, budget=(at[last] + at[last + 1]) / 2)
    trainer = trainer_with(callback)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    found = instrument.measure(str(tiny_model), str(tmp_path / "adapter"), text=text, cache_dir=None)
    assert callback.rows[-1]["step"] == last
    assert found.forgetting.value == pytest.approx(at[last], rel=1e-6, abs=1e-9)
    assert found.forgetting.value <= callback.budget

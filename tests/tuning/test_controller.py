"""ForgettingController: the gradient of its penalty, once per step; resuming to the bit; refusals."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed

from forgetting import ForgettingCallback, ForgettingController
from forgetting.errors import UsageError
from forgetting.measuring.forecast import forecast
from forgetting.tuning.controller import _refuse, _split


class Data(torch.utils.data.Dataset):
    def __init__(self, vocabulary):
        self.ids = np.random.default_rng(5).integers(5, vocabulary, (96, 12))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": torch.tensor(self.ids[i]), "labels": torch.tensor(self.ids[i])}


class Gradients(TrainerCallback):
    """The weights before each step and the gradients before each update."""

    def __init__(self):
        self.weights, self.gradients = [], []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.weights.append(copy.deepcopy({n: p.detach() for n, p in model.named_parameters() if p.requires_grad}))

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})


class Weighs(ForgettingController):
    """With a weight from the first step on."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.steering.moves = [(0, 0.05)]


@pytest.fixture
def text(corpora):
    return str(corpora / "general.jsonl")


def train(folder, tiny_model, callbacks, resume=None, adapter=True, **options):
    from transformers import AutoTokenizer

    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.2))
    set_seed(1)
    given = {"max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 0.05, "save_strategy": "no"}
    given |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "max_grad_norm": 0.0, **options}
    data = Data(model.config.vocab_size)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    arguments = TrainingArguments(str(folder), **given)
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=callbacks, processing_class=tokenizer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_its_gradient_is_that_of_the_weighted_divergence_once_per_step(tmp_path, tiny_model, text, accumulate):
    """Checked at the second step: at the first, adapters equal the base model and the gradient is zero."""
    with_it, without = Gradients(), Gradients()
    controller = Weighs(text, budget=0.05, context=16)
    options = {"gradient_accumulation_steps": accumulate}
    trainer = train(tmp_path / "a", tiny_model, [controller, with_it], **options)
    train(tmp_path / "b", tiny_model, [without], **options)
    model = trainer.model
    for name, parameter in model.named_parameters():
        if name in with_it.weights[1]:
            torch.testing.assert_close(with_it.weights[1][name], without.weights[1][name], atol=1e-3, rtol=0)
            parameter.data.copy_(with_it.weights[1][name])
    model.zero_grad()
    model.train()
    controller.penalty.add(model, 1, 0.05, model.device)
    alone = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert max(float(grad.abs().max()) for grad in alone.values()) > 1e-5
    for name, grad in alone.items():
        difference = with_it.gradients[1][name] - without.gradients[1][name]
        torch.testing.assert_close(difference, grad, atol=2e-3 * float(grad.abs().max()) + 1e-6, rtol=0.05)


@pytest.mark.full
def test_a_resumed_run_continues_with_the_same_weights_to_the_bit(tmp_path, tiny_model, text):
    options = {"save_strategy": "steps", "save_steps": 4, "max_steps": 10}
    whole = ForgettingController(text, budget=0.02, context=16)
    one = train(tmp_path / "a", tiny_model, [whole], **options)
    again = ForgettingController(text, budget=0.02, context=16)
    other = train(tmp_path / "a", tiny_model, [again], resume=str(tmp_path / "a" / "checkpoint-4"), **options)
    assert again.steering == whole.steering
    assert len(whole.steering.moves) > 3
    uninterrupted, resumed = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in resumed)
    kept = json.loads((tmp_path / "a" / "checkpoint-10" / "trainer_state.json").read_text())
    assert kept["stateful_callbacks"]["ForgettingController"]["attributes"]["steering"] == whole.steering.state()
    logged = [x for x in one.state.log_history if "forgetting/weight" in x]
    assert [x["forgetting/weight"] for x in logged][-1] == whole.steering.weight
    train(tmp_path / "b", tiny_model, [], **options)
    with pytest.raises(UsageError, match="written without it"):
        train(tmp_path / "b", tiny_model, [whole], resume=str(tmp_path / "b" / "checkpoint-4"), **options)


def test_the_callbacks_forecast_ignores_the_controllers_sample(tmp_path, tiny_model, text):
    """Both log `forgetting/forgetting`; before, the sample's values replaced those of the text."""
    callback = ForgettingCallback(text, every=1, context=16)
    train(tmp_path, tiny_model, [callback, ForgettingController(text, budget=0.05, context=16)])
    rows = callback.rows[:-1]
    points = [[row[name] for row in rows] for name in ("step", "forgetting", "forgetting_se")]
    expected = forecast(*points, end=8, rates=[1 - step / 8 for step in range(8)])
    assert callback.forecast == replace(expected, guide=True)


def test_a_trainer_that_would_replace_it_by_one_with_default_arguments_is_refused(tmp_path, tiny_model, text):
    """transformers makes callbacks anew from what checkpoints say of their arguments; a text cannot be stored there."""
    options = {"save_strategy": "steps", "save_steps": 4}
    train(tmp_path, tiny_model, [ForgettingController(text, budget=0.02, context=16)], **options)
    checkpoint, options["restore_callback_states_from_checkpoint"] = str(tmp_path / "checkpoint-4"), True
    with pytest.raises(UsageError, match="restore_callback_states_from_checkpoint would replace it"):
        train(tmp_path, tiny_model, [ForgettingController(text, budget=0.02, context=16)], checkpoint, **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"adapter": False}, "a model without adapters"),
        ({"max_steps": 4}, "4 update steps; steering needs at least 8"),
    ],
)
def test_unsupported_trainers_are_refused(tmp_path, tiny_model, text, options, named):
    with pytest.raises(UsageError, match=named):
        train(tmp_path, tiny_model, [ForgettingController(text, context=16)], **options)


def test_a_text_to_hold_on_to_that_is_also_measured_is_refused(tmp_path, tiny_model, text, corpora):
    with pytest.raises(UsageError, match=r"hold shares \d+ windows with text; measured text must not be trained on"):
        train(tmp_path, tiny_model, [ForgettingController(text, hold=text, context=16)])
    train(tmp_path, tiny_model, [ForgettingController(text, hold=str(corpora / "train.jsonl"), context=16)])


def test_several_processes_are_refused(tiny_model):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(target_modules="all-linear"))
    with pytest.raises(UsageError, match="does not work with 2 processes or GPUs; train on one"):
        _refuse(SimpleNamespace(world_size=2, n_gpu=0), model)


def test_adapters_that_change_their_base_are_refused_with_advice_for_a_callback(tiny_model):
    config = LoraConfig(target_modules="all-linear", init_lora_weights="pissa")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    with pytest.raises(UsageError, match="needs an adapter that leaves the base model as it is"):
        _refuse(SimpleNamespace(world_size=1, n_gpu=1, deepspeed=None, fp16=False), model)


def test_it_knows_the_learning_rates_of_the_schedule(tmp_path, tiny_model, text):
    controller = ForgettingController(text, budget=0.5, context=16)
    train(tmp_path, tiny_model, [controller], lr_scheduler_type="linear", warmup_steps=2)
    rates = [0.0, 1 / 2, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert controller.steering.clock == pytest.approx(np.cumsum([0.0, *rates]) / sum(rates))


def test_a_budget_that_cannot_be_met_is_named_in_the_first_tenth(tmp_path, tiny_model, text, caplog):
    class FirstTenth(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    controller = ForgettingController(text, budget=0.001, context=16)
    train(tmp_path, tiny_model, [controller, FirstTenth()], max_steps=20, learning_rate=0.02)
    assert [step for step, *_ in controller.steering.points] == [1, 2]
    assert "above the budget of 0.001" in controller.steering.said["early"]
    assert controller.steering.said["early"] in caplog.messages


def test_a_missed_budget_is_the_last_warning_with_the_logged_numbers(tmp_path, tiny_model, text, caplog):
    trainer = train(tmp_path, tiny_model, [ForgettingController(text, budget=2.0, context=16)])
    end = next(row for row in reversed(trainer.state.log_history) if "forgetting/forgetting_se" in row)
    value, error = end["forgetting/forgetting"], end["forgetting/forgetting_se"]
    assert 0 < value < 1.8
    measured = (
        f"forgetting of {value:.3g} nats/token (standard error {error:.2g}), {1 - value / 2:.0%} below the budget of 2;"
    )
    assert measured in caplog.messages[-1]


def test_documents_are_measured_or_held_on_to_and_never_both(tiny_model, text):
    from transformers import AutoTokenizer

    from forgetting.measuring.reading import read_windows

    windows, *_ = read_windows(text, AutoTokenizer.from_pretrained(tiny_model), [], 16)
    measured, held = _split(windows)
    names = [{part.document_ids[i] for i in part.documents} for part in (measured, held)]
    assert names[0]
    assert names[1]
    assert not names[0] & names[1]
    with pytest.raises(UsageError, match="one document"):
        _split(windows.select([0]))
    copied = replace(windows, first_copy=tuple(i - i % 2 for i in range(len(windows.document_ids))))
    measured, held = _split(copied)
    assert not {i // 2 for i in measured.documents.tolist()} & {i // 2 for i in held.documents.tolist()}

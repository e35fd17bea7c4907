"""Every private name that we use exists in the installed libraries, and an error names one that is missing."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import logging
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from forgetting.capabilities import lm_eval_internals
from forgetting.errors import ForgettingError
from forgetting.measuring import callback
from forgetting.models import accelerate_internals, peft_internals, torch_internals, transformers_internals
from forgetting.models.private_names import PrivateName

NAMES = [*transformers_internals.NAMES, *peft_internals.NAMES, *lm_eval_internals.NAMES, *torch_internals.NAMES]
ids = [name.path.partition(":")[2] for name in NAMES]


def says_what_is_gone(name: PrivateName) -> str:
    """Check the whole message, which names library, version and name, what is affected, and what to do."""
    version, path = metadata.version(name.library), name.path.partition(":")[2]
    return (
        f"{name.library} {version} no longer has {path}, and without it {name.purpose}; install a version that has it "
        f"(known: {name.seen}), and please report this"
    )


def owners_of(name: PrivateName) -> list[Any]:
    """The module that defines a name, or the class and its base classes."""
    module, _, path = name.path.partition(":")
    owner = importlib.import_module(module)
    for part in path.split(".")[:-1]:
        owner = getattr(owner, part)
    return [cls for cls in owner.__mro__ if name.name in vars(cls)] if isinstance(owner, type) else [owner]


@pytest.mark.parametrize("name", NAMES, ids=ids)
def test_each_private_name_exists_and_a_missing_one_is_reported(
    name: PrivateName, monkeypatch: pytest.MonkeyPatch
) -> None:
    name.value()
    for owner in owners_of(name):
        monkeypatch.delattr(owner, name.name)
    with pytest.raises(ForgettingError) as caught:
        name.value()
    assert str(caught.value) == says_what_is_gone(name)


def test_a_missing_module_is_reported_like_a_missing_name() -> None:
    name = PrivateName("peft", "peft.tuners.nowhere:Layer", "nothing works", "1 to 2")
    with pytest.raises(ForgettingError, match=r"^peft [\d.]+ no longer has Layer, and without it nothing works; "):
        name.value()


OBJECTS = [
    *(transformers_internals.ACCEPTS, transformers_internals.N_GPU),
    *(transformers_internals.NO_SPLIT, transformers_internals.TIED),
    *(peft_internals.DISABLED, peft_internals.SCALING),
    *(lm_eval_internals.ENTRY_CONFIG, lm_eval_internals.ENTRY_FILE),
    *(peft_internals.BASE_LAYER, peft_internals.ORIGINAL, accelerate_internals.ORIGINAL_FORWARD),
]


@pytest.mark.parametrize("name", OBJECTS, ids=[name.name for name in OBJECTS])
def test_a_missing_attribute_is_reported(name: PrivateName) -> None:
    with pytest.raises(ForgettingError) as caught:
        name.of(object())
    assert str(caught.value) == says_what_is_gone(name)


# transformers


def test_trainer_calls_the_methods_that_ours_overrides() -> None:
    """Checked in their source, since an override that is never called would go unnoticed."""
    from transformers import Trainer

    source = inspect.getsource(Trainer)
    assert source.count("self._get_grad_norm(") >= 1, "Trainer no longer calls _get_grad_norm"
    assert source.count("self._load_from_checkpoint(") >= 1, "Trainer no longer calls _load_from_checkpoint"
    for name in (transformers_internals.GRAD_NORM, transformers_internals.LOAD_CHECKPOINT):
        assert not name.value().__doc__ or "deprecated" not in name.value().__doc__.lower()


def test_a_trainer_without_what_we_override_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Trainer

    monkeypatch.delattr(Trainer, "_get_grad_norm")
    with pytest.raises(ForgettingError, match=r"no longer has Trainer\._get_grad_norm, and without it a diverged"):
        transformers_internals.check_overridden()


def test_one_gpu_is_what_a_trainer_sees(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    transformers_internals.use_one_gpu(arguments, torch.device("meta"))
    assert (arguments.device, arguments.n_gpu) == (torch.device("meta"), 1)


def test_a_model_says_whether_its_loss_is_over_the_whole_batch(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import Trainer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    trainer = Trainer(model=model, args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]))
    assert (
        transformers_internals.accepts_loss_kwargs(trainer) is transformers_internals.takes_loss_kwargs(model) is True
    )


def test_the_handler_that_calls_a_callback_is_found_and_its_loss_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[Any] = []

    class Looks(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            found.append(callback.trainer_handler())

    handler = CallbackHandler([Looks()], None, None, None, None)
    handler.on_save(None, None, SimpleNamespace(should_save=True))
    assert found == [handler]
    monkeypatch.delattr(CallbackHandler, "call_event")
    with caplog.at_level(logging.WARNING, "forgetting"):
        assert callback.trainer_handler() is None
    assert "rows only go to the log history: transformers " in caplog.text
    assert "no longer has CallbackHandler.call_event" in caplog.text


# PEFT


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def adapted(plain: Any, **options: Any) -> Any:
    config = LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, **options)
    return get_peft_model(copy.deepcopy(plain), config)


def test_disabled_and_merged_adapters_are_recognised(plain: Any) -> None:
    model = adapted(plain, target_modules=["q_proj"])
    prompt = get_peft_model(copy.deepcopy(plain), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    for one in (model, prompt):
        assert not peft_internals.disabled(one)
        with one.disable_adapter():
            assert peft_internals.disabled(one)
    assert not peft_internals.merged(model)
    model.merge_adapter()
    assert peft_internals.merged(model)


def test_the_change_of_a_weight_is_its_closed_form(plain: Any) -> None:
    model = adapted(plain, target_modules=["q_proj"])
    (name, layer), *_ = peft_internals.layers(model)
    weights = dict(model.named_parameters())
    a, b = (weights[f"{name}.lora_{part}.default.weight"] for part in "AB")
    assert peft_internals.scaling(layer) == {"default": 3.0}
    change = peft_internals.delta(layer, "default")
    torch.testing.assert_close(change(), 3.0 * b @ a)
    peft_internals.scaling(layer)["default"] = 1.5
    torch.testing.assert_close(change(), 1.5 * b @ a)
    assert name.startswith(peft_internals.PREFIX)
    assert name.removeprefix(peft_internals.PREFIX) in dict(plain.named_modules())


def test_what_acts_in_place_of_a_module(plain: Any) -> None:
    model = adapted(plain, target_modules=["q_proj"], modules_to_save=["lm_head"])
    head = model.get_base_model().lm_head
    (_, layer), *_ = peft_internals.layers(model)
    assert peft_internals.acting(head) is getattr(head, peft_internals.SAVED.name)["default"]
    assert peft_internals.acting(layer) is layer  # both act together
    with model.disable_adapter():
        assert peft_internals.acting(head) is head.original_module
        assert peft_internals.acting(layer) is layer.base_layer
        del layer.base_layer
        with pytest.raises(ForgettingError, match="no longer has base_layer, and without it a head with an adapter"):
            peft_internals.acting(layer)
    assert not peft_internals.adapted(plain)
    assert peft_internals.adapted(model)


def test_peft_lists_its_methods_and_choices() -> None:
    assert {"LORA", "OFT", "PROMPT_TUNING"} <= set(peft_internals.config_types())
    assert peft_internals.config_types()["LORA"] is LoraConfig
    assert peft_internals.ia3_choice("llama") == (["k_proj", "v_proj", "down_proj"], ["down_proj"])
    assert peft_internals.ia3_choice("no-such") is None


# accelerate


def test_accelerate_keeps_the_forward_that_it_wraps(plain: Any) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model, ids = copy.deepcopy(plain), torch.arange(8)[None]
    own = model(input_ids=ids).logits
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert accelerate_internals.ORIGINAL_FORWARD.name in vars(model), "accelerate keeps it under another name"
    assert not torch.equal(model(input_ids=ids).logits, own)
    with accelerate_internals.own_forward(model):
        assert torch.equal(model(input_ids=ids).logits, own)
    assert not torch.equal(model(input_ids=ids).logits, own)


def test_accelerate_marks_a_model_that_it_spread(plain: Any) -> None:
    from accelerate import dispatch_model

    assert not accelerate_internals.spread(plain)
    model = dispatch_model(copy.deepcopy(plain), {"": "cpu"}, force_hooks=True)
    assert accelerate_internals.spread(model)


def test_processes_that_accelerate_does_not_find_are_reported() -> None:
    accelerate_internals.check_joined(SimpleNamespace(num_processes=2), 2)
    with pytest.raises(ForgettingError, match=r"accelerate [\d.]+ finds 1 of the 2 processes of this run"):
        accelerate_internals.check_joined(SimpleNamespace(num_processes=1), 2)


# lm-eval


def test_fields_of_requests_and_task_files_exist_and_missing_ones_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    lm_eval_internals.check_all()
    fields = lm_eval_internals._fields
    known = lm_eval_internals.INSTANCE_FIELDS | lm_eval_internals.CONFIG_FIELDS
    assert {"task", "doc_to_text"} <= set(lm_eval_internals.config_fields())
    for name, private in known.items():
        monkeypatch.setattr(
            lm_eval_internals, "_fields", lambda path, name=name: [f for f in fields(path) if f != name]
        )
        with pytest.raises(ForgettingError) as caught:
            lm_eval_internals.check_all()
        assert str(caught.value) == says_what_is_gone(private)


def test_tasks_have_what_is_read_of_them(tmp_path: Path) -> None:
    from forgetting.capabilities.items import write_task
    from forgetting.capabilities.tasks import load_tasks

    rows = [{"id": "0", "prompt": "the town is", "choices": ["old", "new"], "gold": 0, "category": "", "cluster": ""}]
    (task,) = load_tasks([write_task(tmp_path, "mine", rows)])["tasks"].values()
    assert not lm_eval_internals.made_in_python(task), "lm-eval's tasks no longer list their `features`"
    assert hasattr(task, "multiple_input"), "lm-eval no longer says whether a task's options stand before its text"
    assert not lm_eval_internals.gold_in_text(task)
    assert not lm_eval_internals.asks_beyond_text(task)
    assert not lm_eval_internals.runs_code(task)
    task.set_config(key="unsafe_code", value=True)
    task.set_config(key="doc_to_image", value="picture")
    assert lm_eval_internals.runs_code(task)
    assert lm_eval_internals.asks_beyond_text(task)
    mean = lm_eval_internals.aggregation("mean")
    assert mean([0.0, 1.0]) == 0.5


@pytest.mark.full
def test_all_private_names_are_in_these_files() -> None:
    """No other file of the package uses a library's name with an underscore."""
    source = Path(transformers_internals.__file__).parent.parent
    trees = {path.relative_to(source): ast.parse(path.read_text(encoding="utf-8")) for path in source.rglob("*.py")}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    own_names = {n.name for _, n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    own_names |= {n.attr for _, n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    own_names |= {n.target.id for _, n in nodes if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    asked = [(path, n.attr) for path, n in nodes if isinstance(n, ast.Attribute)]
    asked += [
        (path, name)
        for path, n in nodes
        if isinstance(n, ast.ImportFrom) and not n.level and not (n.module or "").startswith("forgetting")
        for name in (*(n.module or "").split("."), *(alias.name for alias in n.names))
    ]
    private = {(str(path), name) for path, name in asked if name.startswith("_") and not name.endswith("__")}
    assert {(path, name) for path, name in private if name not in own_names} <= OF_OTHERS


OF_OTHERS = {
    ("studies/engines/accelerate.py", "_exit"),  # of Python
    ("studies/engines/worker.py", "_exit"),
    ("models/transformers_internals.py", "_getframe"),
}

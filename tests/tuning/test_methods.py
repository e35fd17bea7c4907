"""Methods in a study: resumed runs, saved adapters measured again, own learning rates, and wrong options."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_contracts import method_of
from transformers import AutoModelForCausalLM

import forgetting.measuring.measure as instrument
from forgetting.cli import app as application
from forgetting.config.schema import MethodConfig, validate
from forgetting.errors import UsageError
from forgetting.reporting.citations import METHOD_WORKS, citations
from forgetting.store.table import load_table
from forgetting.studies.engines import Local
from forgetting.studies.study import study
from forgetting.tuning.methods import METHODS, Context, expand_grid
from forgetting.tuning.methods.calibration import general_windows
from forgetting.tuning.methods.targets import choose, decoder_layers

STEPS, CUT = 8, 5
# one entry a method; PATH becomes a text that is not the measured one
ENTRIES: list[dict[str, Any]] = [
    {"name": "lora", "rank": 4, "layers": [0]},
    {"name": "dora", "rank": 4},
    {"name": "mica", "rank": 4},
    {"name": "pissa", "rank": 4},
    {"name": "olora", "rank": 4},
    {"name": "corda", "rank": 4, "calibration": {"source": "PATH"}},
    {"name": "eva", "rank": 4},
    {"name": "vera", "rank": 8, "learning_rate": 0.1},
    {"name": "loha", "rank": 4, "learning_rate": 0.1},
    {"name": "lokr", "rank": 4, "learning_rate": 0.1},
    {"name": "ia3", "learning_rate": 0.1},
    {"name": "oft", "block_size": 8},
    {"name": "boft", "block_size": 4},
    {"name": "osf"},
    {"name": "ln_tuning", "learning_rate": 0.1},
    {"name": "bias", "learning_rate": 0.1},
    {"name": "top_layers"},
    {"name": "full"},
    {"name": "peft", "config": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}, "learning_rate": 0.1},
]


class Stopped(BaseException):
    """Simulates a kill: no code catches it."""


def fields(models: dict[str, Path], corpora: Path, *entries: dict[str, Any]) -> dict[str, Any]:
    path = {"source": str(corpora / "chat.jsonl")}
    entries = tuple({**e, "calibration": path} if e.get("calibration") == {"source": "PATH"} else e for e in entries)
    return {
        "model": {"source": str(models["gpt2" if entries[0]["name"] == "bias" else "llama"])},
        "text": {"source": str(corpora / "general.jsonl")},
        "datasets": {"plain": {"source": str(corpora / "train.jsonl")}},
        "methods": list(entries),
        "context": 32,
        "training": {"steps": STEPS, "batch_size": 4, "warmup_steps": 1, "learning_rate": 1e-2},
        "measure": {"start": 2, "every": 2},
    }


def measurements(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.glob("runs/*/measurements.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith("_seconds") and k != "peak_memory"} for row in rows]


def test_every_method_has_an_entry() -> None:
    assert [entry["name"] for entry in ENTRIES] == list(METHODS)


OFTEN = {"lora", "pissa", "eva", "ia3", "top_layers", "peft"}
"""One method of each way to prepare and save; the others take minutes together."""
OFTEN_IN_16_BITS = {"eva", "top_layers"}
"""Those whose resumed runs once differed in bfloat16: by the dtype of adapters, and of the optimiser's state."""


@pytest.mark.full
@pytest.mark.parametrize(
    ("entry", "dtype", "tolerance"),
    [
        pytest.param(
            e, dtype, tolerance, id=f"{e['name']}-{dtype}", marks=() if e["name"] in often else pytest.mark.slow
        )
        for dtype, tolerance, often in (("float32", 2e-6, OFTEN), ("bfloat16", 2e-4, OFTEN_IN_16_BITS))
        for e in ENTRIES
    ],
)
def test_a_run_resumes_and_its_saved_weights_measure_as_it_did(
    entry: dict[str, Any],
    dtype: str,
    tolerance: float,
    models: dict[str, Path],
    corpora: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import forgetting.tuning.run as train

    monkeypatch.setenv("FORGETTING_CACHE", str(tmp_path / "cache"))
    given = fields(models, corpora, entry)
    given["model"] |= {"dtype": dtype}
    config = validate(given, where="test")
    result = study(config, tmp_path / "whole", engine=Local(1))
    assert not result.failed
    rows = measurements(tmp_path / "whole")
    assert abs(rows[-1]["forgetting"] - rows[0]["forgetting"]) > 1e-4, "it moves the model"

    step_end = train.Measurer.on_step_end

    def cut(self: Any, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if state.global_step == CUT:
            raise Stopped
        return step_end(self, args, state, control, **more)

    with monkeypatch.context() as patch:
        patch.setattr(train.Measurer, "on_step_end", cut)
        with pytest.raises(Stopped):
            study(config, tmp_path / "cut", engine=Local(1))
    assert [row["step"] for row in measurements(tmp_path / "cut")] == [0, 2, 4]
    study(config, tmp_path / "cut", engine=Local(1))
    assert measurements(tmp_path / "cut") == rows

    (run,) = result.folder.runs()
    how = {"text": config.text.source, "context": config.context, "dtype": dtype}
    again = instrument.measure(config.model.source, str(run.path / "adapter"), **how).to_dict()
    assert again["forgetting_loss"] == pytest.approx(rows[-1]["forgetting_loss"], abs=tolerance)
    assert again["forgetting"] == pytest.approx(rows[-1]["forgetting"], abs=tolerance)


@pytest.mark.full
def test_a_method_that_does_not_start_at_the_base_is_measured_against_the_base(
    models: dict[str, Path],
    corpora: Path,
    tmp_path: Path,
) -> None:
    entry = {"name": "peft", "config": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8}}
    both = validate(fields(models, corpora, {"name": "lora"}, entry), where="test")
    result = study(both, tmp_path / "s", engine=Local(1))
    start = result.table[result.table["step"] == 0].set_index("method")
    assert start.loc["lora", "forgetting"] == pytest.approx(0, abs=1e-6)
    assert abs(start.loc["peft", "forgetting"]) > 1e-4
    assert start.loc["peft", "forgetting_floor"] == start.loc["lora", "forgetting_floor"]
    notices = {run.read()["method"]["name"]: run.read()["notices"] for run in result.folder.runs()}
    assert any("step 0 is the untrained adapter" in notice for notice in notices["peft"])
    assert not any("untrained adapter" in notice for notice in notices["lora"])


@pytest.mark.full
def test_a_learning_rate_of_its_own_is_that_of_the_training(
    models: dict[str, Path],
    corpora: Path,
    tmp_path: Path,
) -> None:
    entries = {"name": "lora", "label": "own", "learning_rate": [1e-2, 3e-2]}, {"name": "lora", "label": "shared"}
    study(validate(fields(models, corpora, *entries), where="test"), tmp_path / "s", engine=Local(1))
    table = load_table(tmp_path / "s")
    last = table[table["step"] == STEPS].sort_values("forgetting")
    by_label = {label: list(part["forgetting_loss"]) for label, part in last.groupby("label")}
    (shared,) = by_label["shared"]
    assert shared in by_label["own"], "the training's rate, given as one's own, gives its numbers to the last bit"
    assert len(set(by_label["own"])) == 2


def test_omitted_options_do_not_change_the_id_of_a_run() -> None:
    (config,) = expand_grid(MethodConfig.model_validate({"name": "lora"}))
    assert set(config.options) == {"rank", "target_modules", "scaling", "alpha", "dropout"}


def test_each_method_cites_known_works_and_every_work_is_cited() -> None:
    named = {"kalajdzievski2023rslora"} | {key for method in METHODS.values() for key in method.references}
    assert named == set(METHOD_WORKS)
    for key, work in METHOD_WORKS.items():
        assert work.bibtex.startswith(f"@misc{{{key},")
        assert work.url in work.bibtex


def test_a_study_cites_what_it_used(models: dict[str, Path], corpora: Path) -> None:
    def cited(*entries: dict[str, Any]) -> set[str]:
        works = citations(validate(fields(models, corpora, *entries), where="test"))
        return {key for key, work in METHOD_WORKS.items() if work in works}

    assert cited({"name": "lora", "rank": [2, 4]}) == {"hu2021lora", "kalajdzievski2023rslora"}
    assert cited({"name": "lora", "scaling": "classic"}, {"name": "ia3"}) == {"hu2021lora", "liu2022ia3"}
    assert cited({"name": "peft", "config": {"peft_type": "HRA"}}) == {"mangrulkar2022peft"}


# --- options that change the numbers


@pytest.mark.full
@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"name": "vera"}, {"dropout": 0.5}),
        ({"name": "loha"}, {"alpha": 2.0}),
        ({"name": "lokr"}, {"alpha": 2.0}),
        ({"name": "lokr"}, {"factor": 2}),
        ({"name": "osf"}, {"frozen": 0.25}),
        ({"name": "oft", "block_size": 8}, {"block_size": 4}),
        ({"name": "dora"}, {"scaling": "classic"}),
        ({"name": "mica"}, {"alpha": 1.0}),
        ({"name": "eva", "rank": 2}, {"rho": 1.0}),
        ({"name": "eva", "rank": 2}, {"batch_windows": 4}),
        ({"name": "corda", "calibration": {"source": "PATH"}}, {"calibration_windows": 2}),
        ({"name": "corda", "calibration": {"source": "PATH"}}, {"keep": "nothing", "calibration": None}),
        ({"name": "ia3"}, {"target_modules": ["q_proj", "up_proj"], "feedforward_modules": ["up_proj"]}),
        ({"name": "ln_tuning"}, {"layers": [0]}),
        ({"name": "top_layers"}, {"count": 2}),
    ],
    ids=str,
)
def test_each_option_changes_what_is_trained(
    options: dict[str, Any],
    change: dict[str, Any],
    context: Context,
    corpora: Path,
    tiny_model: Path,
) -> None:
    def after(given: dict[str, Any]) -> torch.Tensor:
        torch.manual_seed(0)
        if given.get("calibration") is None:
            given = {key: value for key, value in given.items() if key != "calibration"}
        trained = method_of(given, corpora).prepare(AutoModelForCausalLM.from_pretrained(tiny_model), context)
        trained.train()
        ids = torch.arange(7, 23).reshape(2, 8)
        optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.5)
        for _ in range(4):
            optimizer.zero_grad()
            trained(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        trained.eval()
        with torch.no_grad():
            return trained(input_ids=ids).logits

    plain = after(options)
    assert torch.equal(plain, after(options))
    assert not torch.equal(plain, after({**options, **change}))


def test_eva_moves_ranks_to_where_the_variance_is_and_keeps_their_sum(
    tiny_model: Path,
    context: Context,
) -> None:
    from peft.tuners.lora import LoraLayer

    adapted = method_of({"name": "eva", "rank": 4}).prepare(AutoModelForCausalLM.from_pretrained(tiny_model), context)
    ranks = [module.r["default"] for module in adapted.modules() if isinstance(module, LoraLayer)]
    assert sum(ranks) == 14 * 4
    assert len(set(ranks)) > 1
    assert max(ranks) <= 8
    # rank-stabilised: a layer's scale follows its own rank
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            assert module.scaling["default"] == pytest.approx(16 / module.r["default"] ** 0.5)


def test_corda_freezes_the_directions_that_its_text_needs(
    tiny_model: Path,
    context: Context,
    corpora: Path,
) -> None:
    """The frozen part maps the text's activations almost as W does; PiSSA's, without the largest, does not."""
    entries = {"name": "corda", "rank": 8, "calibration": {"source": "PATH"}}, {"name": "pissa", "rank": 8}
    windows = general_windows_of(corpora, context)
    ids = torch.from_numpy(windows.window(0)[0].astype("int64"))[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    seen: list[torch.Tensor] = []
    first = base.model.layers[0].mlp.up_proj
    first.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    with torch.no_grad():
        base(input_ids=ids)
        expected = first(seen[0])
        errors = []
        for entry in entries:
            adapted = method_of(entry, corpora).prepare(AutoModelForCausalLM.from_pretrained(tiny_model), context)
            frozen = adapted.base_model.model.model.layers[0].mlp.up_proj.base_layer
            errors.append(float((frozen(seen[0]) - expected).norm() / expected.norm()))
    assert errors[0] < 0.5 * errors[1]


def general_windows_of(corpora: Path, context: Context) -> Any:
    from forgetting.config.schema import TextConfig

    return general_windows(TextConfig(source=str(corpora / "train.jsonl")), context, "here")


# --- architectures


def test_layers_and_attention_are_found_in_other_architectures() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {
        "gpt_neox": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2},
        "opt": {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 2},
        "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 2},
        "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2},
    }
    found = {}
    for kind, sizes in small.items():
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=27, **sizes))
        assert decoder_layers(made)[1] == 3
        names = choose(made, "attention", "top-1", "here")
        assert all(".2." in name for name in names)
        found[kind] = sorted(name.rsplit(".", 1)[-1] for name in names)
    assert found == {
        "gpt_neox": ["dense", "query_key_value"],
        "opt": ["k_proj", "out_proj", "q_proj", "v_proj"],
        "bloom": ["dense", "query_key_value"],
        "gpt2": ["c_attn", "c_proj"],
    }


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "lora"},
        {"name": "lora", "target_modules": ["q_proj"]},
        {"name": "lora", "layers": "top-1"},
        {"name": "lora", "target_modules": "attention"},
        {"name": "top_layers"},
        {"name": "ln_tuning"},
        {"name": "bias"},
    ],
    ids=str,
)
def test_of_a_model_that_also_reads_images_only_the_part_for_text_trains(
    entry: dict[str, Any], context: Context
) -> None:
    """Text gives the others no gradient; before, they counted as trained, and a longer tower was the decoder."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    text = LlamaConfig(vocab_size=27, num_hidden_layers=2, attention_bias=True, **sizes)
    seen = CLIPVisionConfig(num_hidden_layers=4, image_size=8, patch_size=4, **sizes)
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=seen, image_token_index=26))
    method = METHODS.parse(MethodConfig.model_validate(entry))
    method.check(model, context)
    made = method.prepare(model, context)
    made.train()(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    trained = {name: p.grad for name, p in made.named_parameters() if p.requires_grad}
    assert trained
    assert [name for name, gradient in trained.items() if gradient is None] == []


# --- wrong options: one line, exit code 2, before anything runs


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "lora", "target_modules": ["query"]}, "methods.lora.target_modules: no module 'query'; the model's"),
        ({"name": "lora", "layers": [2]}, "methods.lora.layers: got 2; the model has 2 decoder layers, 0 to 1"),
        ({"name": "lora", "layers": "top-3"}, "methods.lora.layers: got 'top-3'; the model has 2 decoder layers"),
        (
            {"name": "lora", "target_modules": ["lm_head"], "layers": [0]},
            "methods.lora.target_modules: ['lm_head'] matches no module",
        ),
        ({"name": "pissa", "rank": 33}, "methods.pissa.rank: got 33; model.layers.0.self_attn.q_proj has 32 inputs"),
        ({"name": "mica", "rank": 33}, "methods.mica.rank: got 33"),
        ({"name": "eva", "rank": 32}, "methods.eva.rank: rank * rho is 64, but the narrowest target has 32 inputs"),
        ({"name": "eva", "rank": 4, "batch_windows": 9999}, "methods.eva.batch_windows: no 9999 training windows"),
        ({"name": "oft", "block_size": 24}, "methods.oft.block_size: got 24, which does not divide the 32 inputs"),
        ({"name": "boft", "block_size": 5}, "methods.boft.block_size: got 5"),
        ({"name": "osf", "frozen": 0.01}, "methods.osf.frozen: got 0.01; it freezes 0 of the 32 directions of"),
        ({"name": "bias"}, "methods.bias: LlamaForCausalLM has no biases to train"),
        ({"name": "top_layers", "count": 3}, "methods.top_layers.count: got 3; the model has 2 decoder layers"),
        (
            {"name": "corda", "calibration": {"source": "MEASURED"}},
            "methods.corda.calibration: forgetting is measured on 24 of its windows",
        ),
        ({"name": "peft", "config": {"peft_type": "LORRA"}}, "peft_type: got 'LORRA'; did you mean 'LORA'?"),
        (
            {"name": "peft", "config": {"peft_type": "HRA", "rank": 8}},
            "methods.peft.config.rank: HRA has no such field; choices: apply_GS, bias, exclude_modules",
        ),
        ({"name": "peft", "config": {"peft_type": "HRA", "task_type": "X"}}, "config.task_type: set by the run"),
    ],
    ids=str,
)
def test_wrong_options_get_one_line_and_exit_code_2(
    entry: dict[str, Any],
    message: str,
    models: dict[str, Path],
    corpora: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = fields(models, corpora, {"name": "lora"}, entry)
    if entry.get("calibration") == {"source": "MEASURED"}:
        given["methods"][1]["calibration"] = given["text"]
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(given))
    monkeypatch.setattr(sys, "argv", ["forgetting", "study", str(path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        application.main()
    _, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "Loading weights" not in line and line.strip()]
    assert ended.value.code == 2, err
    assert message in lines[-1]
    assert "Traceback" not in err
    assert not list((tmp_path / "out").glob("runs/*")), "nothing ran"


def test_ia3_on_an_unknown_architecture_asks_for_names(tiny_model: Path, context: Context) -> None:
    unknown = AutoModelForCausalLM.from_pretrained(tiny_model)
    unknown.config.model_type = "mine"
    with pytest.raises(UsageError, match="PEFT has no default for the architecture 'mine'; name the modules of keys"):
        method_of({"name": "ia3"}).check(unknown, context)


def test_methods_that_peft_lacks_for_conv1d_are_refused(
    models: dict[str, Path],
    context: Context,
) -> None:
    gpt2 = AutoModelForCausalLM.from_pretrained(models["gpt2"])
    for name, kind in METHODS.items():
        if not getattr(kind, "conv1d", True):
            (config,) = expand_grid(MethodConfig.model_validate({"name": name}))
            with pytest.raises(UsageError, match=rf"methods.{name}: transformer.h.0.attn.c_attn is a Conv1D"):
                METHODS.parse(config).check(gpt2, context)

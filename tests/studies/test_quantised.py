"""Base models quantised on loading, in studies and elsewhere."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from forgetting import ForgettingCallback, measure
from forgetting.analysis.study_table import load_study
from forgetting.capabilities.evaluate import evaluate
from forgetting.capabilities.suites import Plan
from forgetting.config.schema import ModelConfig, digest_of
from forgetting.errors import UsageError
from forgetting.models import quantised
from forgetting.models.adapters import undisturbed
from forgetting.models.loading import count_parameters, load_base
from forgetting.store.columns import COSTS
from forgetting.store.folder import StudyFolder
from forgetting.studies.engines import Local
from forgetting.studies.inputs import StudyInputs
from forgetting.studies.study import study
from forgetting.tuning import stopping
from forgetting.tuning.grid import expand_runs
from short_study import configure

METHODS = [
    {
        "name": "lora",
        "rank": 4,
        "mitigations": [[], [{"name": "l2sp"}], [{"name": "interpolation", "alphas": [0.0, 1.0]}]],
    }
]


@pytest.fixture(scope="session")
def wide(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose layers have widths that are multiples of 64."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("wide") / "model")
    config = LlamaConfig.from_pretrained(tiny_model)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 32
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def runs(wide: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Studies in 4 bits, measured against the quantised model and against the one in full precision."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("studies")
    for reference in ("quantised", "full"):
        model = {"source": str(wide), "bits": 4, "reference": reference}
        study(configure(wide, corpora, model=model, methods=METHODS), folder / reference, engine=Local(1))
    return {reference: folder / reference for reference in ("quantised", "full")}


def rows(path: Path, step: int, mitigation: str = "") -> dict[str, Any]:
    table = load_study(path)
    (found,) = table[(table["step"] == step) & (table["mitigation"] == mitigation)].to_dict("records")
    return {str(key): value for key, value in found.items()}


@pytest.mark.full
def test_step_0_is_zero_against_the_quantised_model_and_the_cost_of_quantising_against_the_full_one(
    runs: dict[str, Path], wide: Path
) -> None:
    first, full = rows(runs["quantised"], 0), rows(runs["full"], 0)
    assert first["forgetting"] == 0.0
    assert first["quantised"] == "4 bits"
    assert full["quantised"] == "4 bits, against full precision"
    assert full["forgetting"] > 1e-4
    # the same runs, measured against something else
    assert full["finetune_loss"] == first["finetune_loss"]
    assert rows(runs["full"], 8)["finetune_loss"] == rows(runs["quantised"], 8)["finetune_loss"]
    # the slow twin: the base in full precision against the same in 4 bits, token by token
    inputs = StudyInputs(configure(wide, wide, model={"source": str(wide), "bits": 4}))
    exact, rough = load_base(ModelConfig(source=str(wide))).model, inputs.base().model
    windows = StudyInputs(StudyFolder.open(runs["full"]).config()).text
    change, count = 0.0, 0
    for index in range(len(windows)):
        ids, predicted = windows.window(index)
        tokens = torch.from_numpy(ids.astype("int64"))[None]
        with undisturbed(exact), undisturbed(rough):
            one, other = (model(input_ids=tokens).logits[0, :-1].log_softmax(-1) for model in (exact, rough))
        chosen = torch.from_numpy(predicted[1:].copy())
        top = one.argmax(-1, keepdim=True)
        change += float((one.gather(1, top) - other.gather(1, top))[chosen].sum())
        count += int(chosen.sum())
    assert full["forgetting"] == pytest.approx(change / count, abs=1e-5)


@pytest.mark.full
def test_a_stored_adapter_gives_the_studys_numbers_in_its_bits_and_a_notice_in_others(
    runs: dict[str, Path], wide: Path, corpora: Path
) -> None:
    last = rows(runs["quantised"], 8)
    adapter = runs["quantised"] / "runs" / str(last["run_id"]) / "adapter"
    how: dict[str, Any] = {"text": str(corpora / "general.jsonl"), "context": 16, "cache_dir": None}
    found = measure(str(wide), str(adapter), bits=4, **how)
    assert found.forgetting.value == pytest.approx(last["forgetting"], abs=1e-5)
    assert found.dtype == "float32-4bit"
    assert any("quantised to 4 bits (NF4, bitsandbytes)" in notice for notice in found.notices)
    other = measure(str(wide), str(adapter), **how)
    assert any("trained on a base model quantised to 4 bits" in notice for notice in other.notices)
    assert any("--bits 4" in notice for notice in other.notices)
    assert other.forgetting.value != found.forgetting.value
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(wide)


@pytest.mark.full
def test_an_interrupted_run_in_4_bits_resumes_as_if_uninterrupted(
    runs: dict[str, Path], wide: Path, corpora: Path, tmp_path: Path
) -> None:
    config = configure(wide, corpora, model={"source": str(wide), "bits": 4}, methods=[{"name": "lora", "rank": 4}])

    def cut(event: Any) -> None:
        if getattr(event, "step", 0) == 5:
            stopping.request(15)

    with pytest.raises(stopping.StoppedError):
        study(config, tmp_path / "s", engine=Local(1), on_event=cut)
    study(config, tmp_path / "s", engine=Local(1))
    run_id = str(rows(tmp_path / "s", 8)["run_id"])
    cut_rows, whole_rows = (
        [{name: value for name, value in row.items() if name not in COSTS} for row in measured]
        for measured in (
            StudyFolder.open(path).run(run_id).measurements() for path in (tmp_path / "s", runs["quantised"])
        )
    )
    assert cut_rows == whole_rows
    assert len(cut_rows) == 3


HOLDING: list[list[dict[str, Any]]] = [
    [],
    [{"name": "kl", "on": "general", "weight": 10.0}],
    [{"name": "kl", "on": "both", "direction": "reverse", "weight": 10.0}],
    [{"name": "flow"}],
    [{"name": "token_masking", "threshold": 30.0}],
    [{"name": "freeze_layers", "layers": 1}],
    [{"name": "replay", "fraction": 0.5}],
    [{"name": "replay", "fraction": 0.5, "generated": True}],
]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_mitigations_on_quantised_weights(
    wide: Path, corpora: Path, tmp_path: Path, bits: int, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("bitsandbytes")
    mixed = {"source": str(corpora / "train.jsonl")}
    texts = [
        [
            {**one, **({"text": mixed} if one["name"] in ("kl", "replay") and "generated" not in one else {})}
            for one in these
        ]
        for these in HOLDING
    ]
    config = configure(
        wide,
        corpora,
        model={"source": str(wide), "bits": bits},
        methods=[{"name": "lora", "rank": 4, "mitigations": texts}],
        training={"steps": 12, "batch_size": 4, "warmup_steps": 1, "learning_rate": 3e-3, "optimizer": "adamw"},
        measure={"start": 12, "every": 12},
    )
    study(config, tmp_path / "s", engine=Local(1))
    assert not [one for one in caplog.records if one.name.startswith("bitsandbytes")]
    table = load_study(tmp_path / "s")
    assert len(table) == 2 * len(HOLDING)
    first, last = (table[table["step"] == step].set_index("mitigation") for step in (0, 12))
    assert table[["finetune_loss", "forgetting", "forgetting_loss"]].map(math.isfinite).all(axis=None)
    assert (first["forgetting"] == 0.0).all()
    assert first["finetune_loss"].nunique() == 1
    # each is another run than the plain one, and trains
    assert last["finetune_loss"].nunique() == len(HOLDING)
    assert last.loc["", "finetune_loss"] < first["finetune_loss"].iloc[0]
    plain = last.loc["", "forgetting"]
    assert (last.loc[[name for name in last.index if name.startswith("kl")], "forgetting"] < plain / 2).all()
    frozen = last.loc["freeze_layers layers=1"]
    assert frozen["trainable_params"] == last.loc["", "trainable_params"] / 2
    for run_id in last["run_id"]:
        run = StudyFolder.open(tmp_path / "s").run(run_id)
        weights = load_file(run.path / "adapter" / "adapter_model.safetensors")
        moved = {name.split(".")[4] for name, weight in weights.items() if "lora_B" in name and weight.any()}
        assert moved == ({"1"} if run_id == frozen["run_id"] else {"0", "1"})
        assert run.read()["mitigated"].get("kl", {}).get("frozen_copy", False) is False


@pytest.mark.full
def test_the_callback_names_the_quantised_reference_and_does_not_change_training(
    wide: Path, corpora: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("bitsandbytes")
    tokenizer = AutoTokenizer.from_pretrained(wide)
    texts = [json.loads(line)["text"] for line in (corpora / "train.jsonl").read_text().splitlines()[:8]]
    items = [{"input_ids": ids, "labels": ids} for ids in (tokenizer(text)["input_ids"][:16] for text in texts)]
    trained = []
    for callbacks in ([], [ForgettingCallback(str(corpora / "general.jsonl"), tokenizer=tokenizer, context=16)]):
        kind = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        base = AutoModelForCausalLM.from_pretrained(wide, quantization_config=kind)
        torch.manual_seed(0)
        model = get_peft_model(prepare_model_for_kbit_training(base), LoraConfig(r=2, target_modules="all-linear"))
        how = {"max_steps": 3, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-2}
        Trainer(model, TrainingArguments(str(tmp_path), **how), train_dataset=items, callbacks=callbacks).train()
        trained.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
    assert "the base model is quantised to 4 bits (NF4, bitsandbytes): forgetting is measured against it" in caplog.text
    assert callbacks[0].rows[0]["forgetting"] == 0.0
    assert callbacks[0].rows[-1]["forgetting"] != 0.0
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_parameters_are_counted_by_their_values(wide: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    plain = AutoModelForCausalLM.from_pretrained(wide)
    base = load_base(ModelConfig(source=str(wide), bits=bits))
    assert count_parameters(base.model, trainable=False) == sum(p.numel() for p in plain.parameters())
    assert base.key.endswith(f"/float32-{bits}bit")
    assert base.reference_key == load_base(ModelConfig(source=str(wide))).key


def test_weights_stored_in_8_bits_have_another_key_with_bits(tmp_path: Path, tiny_model: Path) -> None:
    """With `bits`, all other weights are put in float32, so the base model's numbers differ."""
    pytest.importorskip("bitsandbytes")
    shutil.copytree(tiny_model, tmp_path / "model")
    quantised = load_base(ModelConfig(source=str(tiny_model), bits=8)).model
    quantised.save_pretrained(tmp_path / "model")
    keys = {load_base(ModelConfig(source=str(tmp_path / "model"), bits=bits)).key for bits in (None, 8)}
    assert len(keys) == 2


def test_measuring_does_not_change_4_bit_weights(wide: Path) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes repacks them if no gradient is needed."""
    pytest.importorskip("bitsandbytes")
    model = load_base(ModelConfig(source=str(wide), bits=4)).model
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    with torch.no_grad():
        model(input_ids=torch.arange(16)[None])
    for name, p in model.named_parameters():
        assert p.data_ptr() == before[name][0]
        assert torch.equal(p.view(torch.uint8), before[name][1].view(torch.uint8))
        assert not getattr(getattr(p, "quant_state", None), "packing_format_for_cpu", False)


def test_layers_that_a_cpu_computes_wrongly_are_refused(tiny_model: Path) -> None:
    pytest.importorskip("bitsandbytes")
    if torch.cuda.is_available():
        pytest.skip("of CPUs alone")
    with pytest.raises(UsageError, match=r"bits 4 on a CPU needs layers whose inputs are a multiple of 64, but .* 32"):
        load_base(ModelConfig(source=str(tiny_model), bits=4))


@pytest.mark.parametrize("method", ["full", "top_layers", "pissa", "olora", "mica", "eva", "vera", "loha", "lokr"])
def test_methods_that_need_the_weights_are_refused(tiny_model: Path, corpora: Path, method: str) -> None:
    config = configure(tiny_model, corpora, model={"source": str(tiny_model), "bits": 4}, methods=[{"name": method}])
    with pytest.raises(UsageError, match=rf"^methods\.{method}: does not work with model.bits 4: .*use one of lora"):
        expand_runs(config)


@pytest.mark.parametrize(
    ("bits", "method", "error"),
    [
        (8, {"name": "dora"}, "methods.dora: does not work with model.bits 8"),
        (
            4,
            {"name": "lora", "mitigations": [{"name": "ewc"}]},
            "mitigations.ewc: does not work with model.bits 4",
        ),
        (4, {"name": "peft", "config": {"peft_type": "HRA"}}, "peft_type: HRA does not work with model.bits 4"),
        (
            4,
            {"name": "peft", "config": {"peft_type": "LORA", "init_lora_weights": "pissa"}},
            "init_lora_weights: pissa",
        ),
    ],
)
def test_other_refusals(tiny_model: Path, corpora: Path, bits: int, method: dict[str, Any], error: str) -> None:
    config = configure(tiny_model, corpora, model={"source": str(tiny_model), "bits": bits}, methods=[method])
    with pytest.raises(UsageError, match=error):
        expand_runs(config)


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ({"bits": 5}, r"model.bits: got 5; .*4.*8"),
        ({"reference": "full"}, r"model: reference: full needs bits"),
    ],
)
def test_wrong_fields_are_named(tiny_model: Path, corpora: Path, model: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        configure(tiny_model, corpora, model={"source": str(tiny_model), **model})


def test_models_already_quantised_and_missing_packages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    gptq = LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UsageError, match=r"bits 4 .*its weights are already quantised by gptq; leave out bits"):
        quantised.check("model 'm'", gptq, 4)
    eight = LlamaConfig(quantization_config={"load_in_8bit": True})
    with pytest.raises(UsageError, match="already quantised to 8 bits by bitsandbytes"):
        quantised.check("model 'm'", eight, 4)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"not installed; pip install 'forgetting\[quantized\]'"):
        quantised.check("model 'm'", LlamaConfig(), 4)


def test_runs_without_bits_keep_their_ids(tiny_model: Path, corpora: Path) -> None:
    (run,) = expand_runs(configure(tiny_model, corpora))
    stored = run.model_dump(mode="json")
    of_old = {**stored, "model": {k: v for k, v in stored["model"].items() if k not in ("bits", "reference")}}
    assert digest_of(of_old) == digest_of(stored)
    ids = set()
    for model in ({}, {"bits": 4}, {"bits": 8}, {"bits": 4, "reference": "full"}):
        (one,) = expand_runs(configure(tiny_model, corpora, model={"source": str(tiny_model), **model}))
        ids.add(one.run_id())
    assert len(ids) == 4


@pytest.mark.slow
def test_capabilities_against_full_precision_ask_the_full_base_and_the_quantised_runs(
    wide: Path, corpora: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    suite = tmp_path / "towns.jsonl"
    items = [{"prompt": f"the old town {w}", "choices": ["bread", "iron"], "answer": 0} for w in "abcdef"]
    suite.write_text("".join(json.dumps(item) + "\n" for item in items))
    asked = {"suites": [str(suite)], "steps": [8]}
    model = {"source": str(wide), "bits": 4, "reference": "full"}
    config = configure(wide, corpora, model=model, methods=[{"name": "lora", "rank": 4}], capabilities=asked)
    assert not study(config, tmp_path / "study", engine=Local(1)).failed
    (run,) = StudyFolder.open(tmp_path / "study").runs()
    for name, bits in (("bits", 4), ("exact", None)):  # both models asked alone
        how = ModelConfig(source="-", bits=bits)
        adapter = str(run.path / "adapter")
        evaluate(str(wide), adapter, plan=Plan((str(suite),)), out=tmp_path / name, model=how)
    stored = tmp_path / "study" / "capabilities"
    assert answers(stored / "base") == answers(tmp_path / "exact" / "base")
    assert answers(stored / "base") != answers(tmp_path / "bits" / "base")
    assert answers(stored / f"{run.id}@8") == answers(tmp_path / "bits" / "tuned")


def answers(folder: Path) -> list[Any]:
    (file,) = folder.glob("*.jsonl")
    return [json.loads(line)["responses"] for line in file.read_text().splitlines()]

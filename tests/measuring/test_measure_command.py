"""`measure` and `check` from end to end on a tiny model, and many kinds of wrong input: one clear line each."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import typer
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from test_measure_kernels import make_model, make_windows
from transformers import AutoModelForCausalLM, AutoTokenizer

import forgetting.measuring.measure as instrument
from forgetting.cli import app as application
from forgetting.cli import measure as commands
from forgetting.errors import UsageError
from forgetting.measuring.quantities import PAIR
from forgetting.models import comparable

pytestmark = pytest.mark.full

NAMES = [quantity.name for quantity in PAIR]


def call(monkeypatch, capsys, *arguments):
    """Run the command in this process: exit code, standard output, standard error."""
    known = {command.name for command in application.app.registered_commands}
    for name, function in (("measure", commands.measure_command), ("check", commands.check_command)):
        if name not in known:
            application.app.command(name)(function)
    monkeypatch.setattr(sys, "argv", ["forgetting", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        application.main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def perturb(model, scale=0.3):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)
    return model


def save_adapter(base, folder, config=None, scale=0.3, seed=1):
    torch.manual_seed(seed)  # PEFT draws the adapter's initial weights
    model = AutoModelForCausalLM.from_pretrained(base)
    config = config or LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    perturb(get_peft_model(model, config), scale).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    return save_adapter(tiny_model, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def full(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    perturb(AutoModelForCausalLM.from_pretrained(tiny_model), 0.1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FORGETTING_CACHE", str(tmp_path / "cache"))


def rows_of(tiny_model, tuned, corpora, **options):
    return instrument.measure(str(tiny_model), tuned, text=str(corpora / "general.jsonl"), **options).to_dict()


def test_adapter_full_and_live_models_agree(tiny_model, adapter, corpora, tmp_path):
    by_name = rows_of(tiny_model, str(adapter), corpora)
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = str(corpora / "general.jsonl")
    alone = instrument.measure(None, live, text=text, tokenizer=tokenizer).to_dict()
    around = instrument.measure(live.get_base_model(), live, text=text, tokenizer=tokenizer).to_dict()
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    as_full = rows_of(tiny_model, str(tmp_path / "merged"), corpora)
    two = instrument.measure(
        AutoModelForCausalLM.from_pretrained(tiny_model), merged, text=text, tokenizer=tokenizer
    ).to_dict()
    assert by_name["forgetting"] > 0.05
    for other in (alone, around, as_full, two):
        for name in NAMES:
            assert other[name] == pytest.approx(by_name[name], abs=2e-6), name
            assert other[f"{name}_se"] == pytest.approx(by_name[f"{name}_se"], abs=2e-6)
    assert by_name["text_documents"] == 12


def test_a_loaded_model_is_checked_against_a_base_given_by_name(tiny_model, adapter, corpora):
    by_name = rows_of(tiny_model, str(adapter), corpora)
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    assert rows_of(tiny_model, live, corpora)["forgetting"] == pytest.approx(by_name["forgetting"], abs=2e-6)

    other = AutoModelForCausalLM.from_pretrained(tiny_model, rms_norm_eps=0.1)
    measured = instrument.measure(str(tiny_model), other, text=str(corpora / "general.jsonl"))
    assert "the models' configurations differ in rms_norm_eps (1e-06 and 0.1)" in measured.notices

    with torch.no_grad():
        live.get_base_model().model.norm.weight[0] = float("nan")
    with pytest.raises(UsageError, match=r"the tuned model's weights contain NaN: .*norm\.weight"):
        rows_of(tiny_model, live, corpora)


def test_identities_of_the_quantities(tiny_model, full, corpora):
    row = rows_of(tiny_model, str(full), corpora, noise_floor=True)
    assert row["forgetting"] == pytest.approx(row["forgetting_loss"] - row["forgetting_floor"], abs=1e-6)
    assert row["soft_forgetting_loss"] >= row["kl"] > 0
    assert 0 <= row["agreement"] <= 1
    assert row["noise_floor_batch"] < 1e-5
    assert row["noise_floor_dtype"] < 0.01
    same = rows_of(tiny_model, str(tiny_model), corpora)
    assert same["forgetting"] == 0
    assert same["agreement"] == 1
    assert abs(same["kl"]) < 1e-6


def test_the_second_call_uses_the_cache_bit_for_bit(tiny_model, adapter, corpora, tmp_path):
    first = rows_of(tiny_model, str(adapter), corpora)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    second = rows_of(tiny_model, str(adapter), corpora)
    uncached = rows_of(tiny_model, str(adapter), corpora, cache_dir=None)
    for name in NAMES:
        assert first[name] == second[name] == uncached[name]


def test_json_is_one_flat_object_but_for_the_hashes_and_nothing_else(monkeypatch, capsys, tiny_model, adapter, corpora):
    code, out, _ = call(
        monkeypatch, capsys, "measure", tiny_model, adapter, "--text", corpora / "general.jsonl", "--json"
    )
    assert code == 0
    row = json.loads(out)
    weights = adapter / "adapter_model.safetensors"
    assert row.pop("sha256") == {weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert set(row.pop("probes")) == {"facts", "reasoning", "code", "writing", "instructions", "refusals"}
    assert not any(isinstance(value, dict) for value in row.values())
    assert {*NAMES, *(f"{name}_se" for name in NAMES)} <= row.keys()


@pytest.mark.full
def test_the_table_the_page_and_the_summary(monkeypatch, capsys, tiny_model, adapter, corpora, tmp_path):
    text = ("--text", corpora / "general.jsonl")
    code, out, _ = call(monkeypatch, capsys, "measure", tiny_model, adapter, *text, "--html", tmp_path / "p.html")
    assert code == 0
    assert "agreement" in out
    assert "nats" in (tmp_path / "p.html").read_text()
    code, out, _ = call(
        *(monkeypatch, capsys, "check", tiny_model, adapter, *text),
        *("--budget", 100, "--markdown", tmp_path / "s.md"),
    )
    assert code == 0
    assert "within budget" in out
    assert "| Forgetting, excess over the base model |" in (tmp_path / "s.md").read_text()
    code, out, _ = call(monkeypatch, capsys, "check", tiny_model, adapter, *text, "--budget", 1e-9, "--json")
    assert code == 3
    assert json.loads(out)["verdict"] == "over"
    middle = rows_of(tiny_model, str(adapter), corpora)["forgetting"]
    code, out, _ = call(monkeypatch, capsys, "check", tiny_model, adapter, *text, "--budget", middle)
    assert (code, "undecided" in out) == (0, True)
    code, _, _ = call(monkeypatch, capsys, "check", tiny_model, adapter, *text, "--budget", middle, "--strict")
    assert code == 3


def test_added_tokens_are_compared_on_the_shared_part(tiny_model, corpora, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<extra>", "<more>"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(tmp_path / "grown")
    tokenizer.save_pretrained(tmp_path / "grown")
    row = rows_of(tiny_model, str(tmp_path / "grown"), corpora)
    assert row["forgetting"] == pytest.approx(0, abs=1e-6)  # on the shared part nothing changed
    assert any("compared on the first" in notice for notice in row["notices"])
    assert any("2 added tokens" in notice for notice in row["notices"])
    with pytest.raises(UsageError, match="the text contains '<more>', a token that only the tuned model's tokenizer"):
        comparable.check_tokenizers(AutoTokenizer.from_pretrained(tiny_model), tokenizer, ["some <more> words"])


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
        LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
    ],
    ids=["prompt-tuning", "pissa", "saved-embedding", "dora"],
)
def test_unusual_adapters_are_compared_with_the_true_base(tiny_model, corpora, tmp_path, config):
    floor = rows_of(tiny_model, str(tiny_model), corpora)["forgetting_floor"]
    row = rows_of(tiny_model, str(save_adapter(tiny_model, tmp_path / "a", config)), corpora)
    assert row["forgetting_floor"] == floor
    assert row["forgetting"] != 0


def test_padding_side_does_not_matter(tiny_model, adapter, corpora):
    rows = []
    for side in ("left", "right"):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model, padding_side=side)
        live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
        rows.append(instrument.measure(None, live, text=str(corpora / "general.jsonl"), tokenizer=tokenizer).to_dict())
    assert rows[0]["forgetting"] == rows[1]["forgetting"]


def other_base(tiny_model, folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    perturb(model, 0.5).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def wider_adapter(folder):
    get_peft_model(make_model("llama"), LoraConfig(r=2, target_modules=["up_proj"])).save_pretrained(folder)
    return folder


def other_tokenizer(tiny_model, full, folder):
    shutil.copytree(full, folder)
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    vocabulary = saved["model"]["vocab"]
    vocabulary["river"], vocabulary["town"] = vocabulary["town"], vocabulary["river"]
    path.write_text(json.dumps(saved))
    return folder


def damaged(adapter, folder, name, content):
    shutil.copytree(adapter, folder)
    (folder / name).write_bytes(content)
    return folder


def without(adapter, folder, name):
    shutil.copytree(adapter, folder)
    (folder / name).unlink()
    return folder


BAD = {
    "no such base": lambda t: (["/nowhere/base", t.adapter], "no such folder"),
    "no such tuned": lambda t: ([t.base, "./nowhere"], "no such folder"),
    "base is an adapter": lambda t: ([t.adapter, t.adapter], "an adapter, not a base model"),
    "tuned is a file": lambda t: ([t.base, t.text], "file"),
    "tuned is an empty folder": lambda t: ([t.base, t.empty], "not a model"),
    "adapter of another base": lambda t: ([other_base(t.base, t.tmp / "o"), t.adapter], "was made for"),
    "adapter of another shape": lambda t: ([t.base, wider_adapter(t.tmp / "w")], "does not fit"),
    "damaged adapter": lambda t: ([t.base, damaged(t.adapter, t.tmp / "d", "adapter_model.safetensors", b"no")], "dam"),
    "damaged config": lambda t: ([t.base, damaged(t.adapter, t.tmp / "d", "adapter_config.json", b"{")], "adapter_con"),
    "adapter without weights": lambda t: (
        [t.base, without(t.adapter, t.tmp / "d", "adapter_model.safetensors")],
        "no adapter_model.safetensors",
    ),
    "other tokenizer": lambda t: ([t.base, other_tokenizer(t.base, t.full, t.tmp / "o")], "tokenizers differ"),
    "no such text": lambda t: ([t.base, t.adapter, "--text", "nowhere.txt"], "nowhere.txt"),
    "empty text": lambda t: ([t.base, t.adapter, "--text", t.empty / "e.txt"], "e.txt"),
    "no such column": lambda t: ([t.base, t.adapter, "--text-field", "text_column=body"], "'body'"),
    "no such field": lambda t: ([t.base, t.adapter, "--text-field", "splt=test"], "did you mean 'split'?"),
    "no field": lambda t: ([t.base, t.adapter, "--text-field", "split"], "give NAME=VALUE"),
    "context too long": lambda t: ([t.base, t.adapter, "--context", 100_000], "built for 64"),
    "context too short": lambda t: ([t.base, t.adapter, "--context", 1], "at least 2"),
    "no tolerance": lambda t: ([t.base, t.adapter, "--tolerance", 0], "above 0"),
    "no batch": lambda t: ([t.base, t.adapter, "--batch-tokens", 0], "at least 1"),
    "no such device": lambda t: ([t.base, t.adapter, "--device", "abacus"], "abacus"),
    "bits on a CPU": lambda t: ([t.base, t.adapter, "--bits", 4], "a multiple of 64"),
    "cache and no cache": lambda t: ([t.base, t.adapter, "--cache", "c", "--no-cache"], "not both"),
    "page in no folder": lambda t: ([t.base, t.adapter, "--html", t.base / "config.json" / "p.html"], "written"),
    "unknown option": lambda t: ([t.base, t.adapter, "--tolernce", 1], "--tolernce"),
    "unknown dtype": lambda t: ([t.base, t.adapter, "--dtype", "float8"], "float8"),
}


class Tour:
    def __init__(self, **fields):
        self.__dict__.update(fields)


def test_how_the_text_is_read_is_set_by_flags(monkeypatch, capsys, tiny_model, adapter, corpora, tmp_path):
    text = corpora / "general.jsonl"
    plain = call(monkeypatch, capsys, "measure", tiny_model, adapter, "--text", text, "--json")
    other = tmp_path / "other.jsonl"
    other.write_text(text.read_text().replace('"text":', '"body":'))
    named = call(monkeypatch, capsys, "measure", tiny_model, adapter, "--text", other, "--json")
    assert (named[0], named[1]) == (2, "")
    assert "columns: id, body. Set which to read with text_column" in named[2]
    assert "--text-field text_column=NAME" in named[2]
    field = ("--text-field", "text_column=body", "--text-field", "max_documents=12")
    named = call(monkeypatch, capsys, "measure", tiny_model, adapter, "--text", other, *field, "--json")
    assert json.loads(named[1])["forgetting"] == json.loads(plain[1])["forgetting"]


@pytest.mark.parametrize("name", BAD)
def test_a_tour_of_bad_input(name, monkeypatch, capsys, tiny_model, adapter, full, corpora, tmp_path):
    if name == "bits on a CPU":
        pytest.importorskip("bitsandbytes")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "e.txt").write_text("")
    text = corpora / "general.jsonl"
    tour = Tour(base=tiny_model, adapter=adapter, full=full, text=text, empty=empty, tmp=tmp_path)
    arguments, expected = BAD[name](tour)
    given = [] if "--text" in arguments else ["--text", text]
    code, out, err = call(monkeypatch, capsys, "measure", *arguments, *given)
    assert code == 2, err
    assert expected in err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(("budget", "named"), [("nan", "nan"), ("much", "--budget")])
def test_invalid_budgets_are_refused(budget, named, monkeypatch, capsys, tiny_model, adapter):
    code, _, err = call(monkeypatch, capsys, "check", tiny_model, adapter, "--budget", budget)
    assert code == 2
    assert named in err


def test_python_refusals(tiny_model, adapter):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with pytest.raises(UsageError, match="tokenizer="):
        instrument.measure(model, AutoModelForCausalLM.from_pretrained(tiny_model))
    with pytest.raises(UsageError, match="no base model"):
        instrument.measure(None, model)
    with pytest.raises(UsageError, match="both by name"):
        instrument.measure(model, str(adapter))
    with pytest.raises(UsageError, match="did you mean 'tolerance'"):
        instrument.measure(model, model, tolerence=1)
    biased = get_peft_model(make_model("phi"), LoraConfig(r=2, target_modules=["q_proj"], bias="all"))
    with pytest.raises(UsageError, match="own biases"):
        instrument.measure(None, biased, text=make_windows([20, 20]))
    with pytest.raises(UsageError, match="has token"):
        comparable.shared_rows(model, model, make_windows([20], vocabulary=1000).largest)


def test_a_loaded_adapter_that_changed_its_base_is_refused_also_if_it_is_inactive():
    windows = make_windows([20, 20])
    changed = get_peft_model(make_model("phi"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"))
    changed.add_adapter("second", LoraConfig(r=2, target_modules=["v_proj"]))
    changed.set_adapter("second")
    with pytest.raises(UsageError, match="'default': init_lora_weights='pissa' changes the base"):
        instrument.measure(None, changed, text=windows)
    for options in ({"kasa_config": {"beta": 1}}, {"init_lora_weights": "lora_ga"}):  # the oldest PEFT lacks these
        with pytest.raises(UsageError, match=r"truncates the base|changes the base"):
            comparable.check_live_adapter(SimpleNamespace(peft_config={"a": SimpleNamespace(**options)}))


def test_a_loaded_base_model_with_an_adapter_inside_is_refused():
    """`get_peft_model` changes the model that it is given; taken for the base, nothing would seem forgotten."""
    windows, base = make_windows([20, 20]), make_model("phi")
    adapter = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    merged = copy.deepcopy(adapter).merge_and_unload()
    with pytest.raises(UsageError, match="contains an active adapter"):
        instrument.measure(base, merged, text=windows)
    found = instrument.measure(adapter, merged, text=windows)
    assert "the base model is a PeftModel: it is measured with its adapters disabled" in found.notices
    expected = instrument.measure(base, adapter, text=windows).forgetting.value
    assert found.forgetting.value == pytest.approx(expected, abs=1e-5)
    assert abs(expected) > 1e-4


def test_commands_are_registered_functions():
    assert typer.main.get_command(application.app) is not None


@pytest.mark.parametrize("which", ["base", "tuned"])
@pytest.mark.parametrize(
    ("value", "code", "says"),
    [
        ("nan", 2, "model '{broken}': the {which} model's weights contain NaN: model.layers.0.mlp.up_proj.weight"),
        (
            "-inf",
            2,
            "model '{broken}': the {which} model's weights contain infinities: model.layers.0.mlp.up_proj.weight",
        ),
        ("3e38", 1, "the {which} model '{broken}' gives no finite loss"),
    ],
)
def test_a_model_that_gives_no_numbers_is_an_error_that_names_it(
    monkeypatch, capsys, caplog, tiny_model, tmp_path, which, value, code, says
):
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0] = float(value)
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(broken)
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and looked at the dog\n\nanother day came and went\n")
    pair = (broken, tiny_model) if which == "base" else (tiny_model, broken)
    left, out, err = call(monkeypatch, capsys, "measure", *pair, "--text", text, "--context", "16")
    assert (left, out) == (code, "")
    assert says.format(which=which, broken=broken) in err
    assert "of an unknown kind" not in caplog.text

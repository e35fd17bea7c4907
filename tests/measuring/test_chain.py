"""Chains: each step's part is a paired difference, parts add up, and faults of merges and files are found."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from scipy import stats
from test_measure_command import call, save_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import forgetting
from forgetting.config.steps import Step, steps_of
from forgetting.errors import UsageError
from forgetting.measuring.chain_result import Chain
from forgetting.measuring.estimate import holm
from forgetting.models.merges import Added
from forgetting.reporting.chain import render


@pytest.fixture(scope="module")
def base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers are wide enough for blocks of 64."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    config = LlamaConfig.from_pretrained(tiny_model)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 32
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def merged(base: Path, adapter: Path, folder: Path, times: float = 1.0, layers: str = "") -> Path:
    """The base model with an adapter added this many times, in layers with `layers` in their name."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    for name, module in model.named_modules():
        if hasattr(module, "lora_B") and "default" in module.lora_B:
            module.lora_B["default"].weight.data *= times if layers in name else 0.0
    model.merge_and_unload().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter, and merges of it: correct, added twice, in half of its layers, and not at all."""
    folder = tmp_path_factory.mktemp("steps")
    adapter = save_adapter(base, folder / "tuned", LoraConfig(r=4, target_modules=["q_proj", "up_proj"]), 0.2)
    found = {"tuned": adapter, "merged": merged(base, adapter, folder / "merged")}
    found["twice"] = merged(base, adapter, folder / "twice", 2.0)
    found["half"] = merged(base, adapter, folder / "half", layers="up_proj")
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder / "lost")
    return found | {"lost": folder / "lost"}


def measured(base: Path, corpora: Path, *steps: Any, **how: Any) -> Chain:
    text = str(corpora / "general.jsonl")
    return forgetting.chain(base, [*steps], text=text, context=32, **{"cache_dir": None, **how})


@pytest.fixture(scope="module")
def chain(base: Path, made: dict[str, Path], corpora: Path) -> Chain:
    steps = (made["tuned"], made["merged"], f"low={made['merged']}@dtype=bfloat16", "@bits=4", made["twice"])
    return measured(base, corpora, *steps)


def slow_part(after: Any, before: Any, windows: Any) -> tuple[float, float]:
    """Mean and standard error of the difference, by plain loops over documents."""
    documents = list(windows.token_documents())
    sums: dict[int, list[float]] = {}
    for one, other, document in zip(after, before, documents, strict=True):
        sums.setdefault(document, []).append(float(one) - float(other))
    n = len(documents)
    mean = sum(sum(values) for values in sums.values()) / n
    squares = sum(sum(value - mean for value in values) ** 2 for values in sums.values())
    return mean, math.sqrt(len(sums) / (len(sums) - 1) * squares) / n


@pytest.mark.full
def test_parts_are_paired_differences_and_add_up(
    chain: Chain, base: Path, made: dict[str, Path], corpora: Path
) -> None:
    alone = forgetting.measure(
        str(base), str(made["tuned"]), text=str(corpora / "general.jsonl"), context=32, cache_dir=None
    )
    assert chain.steps[0].so_far.means == alone.means
    before = np.zeros(alone.forgetting.n_tokens)
    for step in chain.steps:
        change = step.so_far.change
        assert (step.part.value, step.part.se) == pytest.approx(slow_part(change, before, alone.windows), abs=1e-12)
        before = change
    assert sum(step.part.value for step in chain.steps) == pytest.approx(chain.total.value, abs=1e-9)
    first, low = chain.steps[0], chain.steps[2]
    assert low.part.se < 0.2 * math.hypot(
        first.so_far.forgetting.se, low.so_far.forgetting.se
    )  # the common part cancels
    assert first.parts["agreement"].value == pytest.approx(alone.means["agreement"].value - 1)
    means = alone.means
    assert first.parts["data_loss"].value == pytest.approx(
        means["data_loss_tuned"].value - means["data_loss_base"].value
    )
    p = [2 * stats.t.sf(abs(step.part.value / step.part.se), step.part.n_documents - 1) for step in chain.steps]
    assert list(chain.p.values()) == pytest.approx(p)
    assert list(chain.p_holm.values()) == pytest.approx(holm(p))


@pytest.mark.full
def test_rows_page_and_words(chain: Chain) -> None:
    row = chain.to_dict()
    assert json.loads(json.dumps(row)) == row
    assert [step["name"] for step in row["steps"]] == ["tuned", "merged", "low", "4bit", "twice"]
    assert [step["kind"] for step in row["steps"]] == [
        "adapter on base", "model", "model, bfloat16", "model, 4 bits, bfloat16", "model",
    ]  # fmt: skip
    assert all(len(sha) == 64 for step in row["steps"] for sha in step["sha256"].values())
    most = chain.lost_most
    assert most is not None
    assert most.name == row["lost_most"] == max(chain.steps, key=lambda step: step.part.value).name
    assert chain.sentence().startswith(f"'{most.name}' lost most: {most.part.value:.4f} ± ")
    assert " of " in chain.sentence()
    parts = most.parts | {"forgetting": replace(most.part, value=9.0)}
    back = replace(chain, steps=(replace(most, parts=parts), chain.steps[0]))
    assert " of " not in back.sentence()
    assert f"; after all steps it is {back.total.value:.4f} ± " in back.sentence()
    page = render(chain)
    assert all(f"<td>{step.name}</td>" in page for step in chain.steps)
    assert "<script" not in page
    assert chain.to_frame().loc["low", "forgetting"] == row["steps"][2]["forgetting"]
    assert "of this step" in str(chain)
    before = [step.so_far.forgetting.value for step in chain.steps[:-1]]
    assert list(chain.figure().data[0].base) == pytest.approx([0.0, *before])


@pytest.mark.full
def test_steps_that_change_nothing_are_exactly_zero(base: Path, corpora: Path) -> None:
    found = measured(base, corpora, base, "@dtype=float32", f"again={base}")
    for step in found.steps:
        parts = [step.parts[name] for name in ("forgetting", "agreement", "data_loss")]
        assert all((mean.value, mean.se) == (0.0, 0.0) for mean in parts)
        assert step.parts["kl"].value == (pytest.approx(0.0, abs=1e-7) if step is found.steps[0] else 0.0)
    assert list(found.p_holm.values()) == [1.0, 1.0, 1.0]
    assert found.lost_most is None
    assert "no step increases forgetting by more than its error" in found.sentence()
    assert "the step before at every token, exactly" in found.steps[1].notices[-1]
    few = forgetting.chain(base, [f"a={base}"], text=["the old river went ."] * 4, context=4, cache_dir=None)
    assert math.isnan(few.p["a"])
    assert few.sentence().startswith("1 document, too few to test the steps (at least 5); after all steps")


@pytest.mark.full
def test_faults_of_merges_are_found(chain: Chain, base: Path, made: dict[str, Path], corpora: Path) -> None:
    assert not any("adapter" in notice for notice in chain.steps[1].notices + chain.steps[2].notices)
    assert chain.steps[4].notices[0] == "the weights differ from the base by 2.00 times what adapter 'tuned' adds"
    found = measured(base, corpora, made["tuned"], made["lost"], made["half"])
    assert found.steps[1].notices[0] == "the weights equal the base's: the adapter of 'tuned' is not in them"
    assert found.steps[2].notices[0] == "2 of 4 layers that adapter 'tuned' changes equal the base model's"


@pytest.mark.parametrize(("times", "eps"), [(1.0, 0.0), (2.0, 2**-7), (0.5, 2**-7)])
def test_the_scale_of_a_merge_is_known_below_rounding(times: float, eps: float) -> None:
    """The change is far below the rounding of each weight, but the scale over all weights is still right."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=400_000)
    a = 1e-3 * rng.normal(size=weight.size)
    m = times * a + eps * np.abs(weight) * (rng.random(weight.size) - 0.5) / 2
    sums = {"aa": a @ a, "am": a @ m, "mm": m @ m, "ww": weight @ weight}
    found = Added(layers=1, numbers=weight.size, eps=eps, **{name: float(value) for name, value in sums.items()})
    assert found.scale == pytest.approx(times, abs=4 * found.se + 1e-9)
    messages = found.notices("x", quantised=False)
    assert bool(messages) == (times != 1.0)
    other = Added(layers=1, numbers=weight.size, eps=eps, **{**sums, "am": 0.1 * (sums["aa"] * sums["mm"]) ** 0.5})
    assert other.notices("x", quantised=False) == [] or eps  # something else was added: no note on the adapter


@pytest.mark.full
def test_adapters_are_applied_to_the_model_that_they_were_made_for(
    base: Path, made: dict[str, Path], corpora: Path, tmp_path: Path
) -> None:
    second = save_adapter(made["merged"], tmp_path / "second", LoraConfig(r=2, target_modules=["v_proj"]), 0.2)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    both = merged(made["merged"], second, tmp_path / "both")
    found = measured(base, corpora, made["tuned"], made["merged"], second, both, f"stacked={second}@on=tuned")
    assert [step.kind for step in found.steps[2:]] == ["adapter on merged", "model", "adapter on tuned"]
    assert "applied to 'merged', the model that its adapter_config.json names" in found.steps[2].notices
    for step in found.steps[3:]:  # merged by hand or by this package, it is the same model
        assert step.part.value == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(UsageError, match="made for"):
        measured(base, corpora, f"{second}@on=base")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a@dtpe=float16"], "no field 'dtpe'; did you mean 'dtype'"),
        (["a@bits=3"], "bits '3'; allowed: 4, 8"),
        (["a@dtype"], "after @, give FIELD=VALUE; fields: dtype, bits, on, revision, file"),
        (["a@bits=4,bits=8"], "bits is given twice"),
        (["@on=base"], "no model; give one"),
        (["@bits=4,on=base"], "on needs a model"),
        (["x=a", "x=b"], "two steps are called 'x'"),
        (["x=a", "b@on=y"], "on=y: no such step before it; choices: base, before, x"),
        (["base=a"], "this name has a meaning of its own"),
        ([], "give at least one"),
    ],
)
def test_wrong_steps_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        steps_of(given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_steps_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "run@lr=1"
    odd.mkdir()
    assert steps_of(
        ["org/sft", "q=@bits=4", "@dtype=float16,bits=8", "run@lr=1", "n=run@lr=1@on=q", "org2/sft", odd]
    ) == [
        Step("sft", "org/sft"),
        Step("q", None, bits=4),
        Step("8bit-float16", None, dtype="float16", bits=8),
        Step("run@lr=1", "run@lr=1"),
        Step("n", "run@lr=1", on="q"),
        Step("org2/sft", "org2/sft"),
        Step(str(odd), str(odd)),
    ]


def write_gguf(
    model: Path, file: Path, kind: str, template: str | None = None, tokens: list[str] | None = None
) -> Path:
    """A Llama as llama.cpp's converter writes it: names, permuted query and key rows, weights in blocks."""
    import gguf

    loaded = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = loaded.config
    out = gguf.GGUFWriter(file, "llama")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    out.add_tokenizer_model("gpt2")
    out.add_token_list(tokens or sorted(vocabulary, key=vocabulary.__getitem__))
    if template or tokenizer.chat_template:
        out.add_chat_template(template or tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in loaded.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        array = tensor.float().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        blocks = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        named = names.get_name(name, try_suffixes=(".weight",))
        out.add_tensor(named, gguf.quants.quantize(np.ascontiguousarray(array), blocks), raw_dtype=blocks)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


@pytest.mark.full
def test_gguf_files(base: Path, made: dict[str, Path], corpora: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    AutoTokenizer.from_pretrained(base).save_pretrained(made["merged"])
    plain = write_gguf(made["merged"], tmp_path / "plain.gguf", "F32")
    q8 = write_gguf(made["merged"], tmp_path / "m-Q8_0.gguf", "Q8_0")
    q4 = write_gguf(made["merged"], tmp_path / "m-Q4_0.gguf", "Q4_0", template="{{ messages }}")
    wrong = write_gguf(base, tmp_path / "b-Q8_0.gguf", "Q8_0")
    found = measured(base, corpora, made["tuned"], made["merged"], plain, f"{tmp_path}@file=m-Q8_0.gguf", q4, wrong)
    steps = {step.name: step for step in found.steps}
    assert [step.kind for step in found.steps[2:]] == ["GGUF"] * 4
    assert steps["plain.gguf"].part.value == pytest.approx(0.0, abs=1e-6)
    q8_moves, q4_moves = (float(np.abs(found.change(place)).mean()) for place in (3, 4))
    assert 0 < q8_moves < 0.2 * q4_moves < 0.2 * float(np.abs(found.change(0)).mean())
    assert not any("times" in notice for step in found.steps[:5] for notice in step.notices)
    assert "the file's chat template differs from the base model's" in steps["m-Q4_0.gguf"].notices[0]
    assert "0.00 times what adapter 'tuned' adds: the adapter is not in them" in steps["b-Q8_0.gguf"].notices[0]
    assert steps["m-Q4_0.gguf"].sha256.keys() == {"m-Q4_0.gguf"}
    assert found.steps[3].model.endswith(q8.name)
    vocabulary = AutoTokenizer.from_pretrained(base).get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens[7], tokens[8] = tokens[8], tokens[7]
    moved = write_gguf(base, tmp_path / "moved.gguf", "F32", tokens=tokens)
    with pytest.raises(UsageError, match="its vocabulary differs from the base model's: 2 of 27 tokens"):
        measured(base, corpora, moved)
    (tmp_path / "none.gguf").write_bytes(b"nothing")
    for given, message in (
        (tmp_path / "none.gguf", "not a GGUF file"),
        (f"{q4}@bits=4", "are already quantised"),
        (tmp_path, "give .*@file="),
        (tmp_path / "not.gguf", "no such file"),
    ):
        with pytest.raises(UsageError, match=message):
            measured(base, corpora, given)


@pytest.mark.full
def test_a_different_chat_template_and_dtype_are_reported(base: Path, corpora: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path / "other")
    found = measured(base, corpora, tmp_path / "other")
    assert any("chat template differs" in notice for notice in found.steps[0].notices)
    assert found.steps[0].kind == "model, bfloat16"


@pytest.mark.full
def test_quantised_adapters_and_what_is_refused(base: Path, made: dict[str, Path], corpora: Path) -> None:
    found = measured(base, corpora, made["tuned"], "q=@bits=8", f"again={made['tuned']}@bits=8")
    assert [step.kind for step in found.steps] == [
        "adapter on base",
        "adapter on base, 8 bits",
        "adapter on base, 8 bits",
    ]
    assert found.steps[2].part.value == 0.0
    assert 0 < abs(found.steps[1].part.value) < found.steps[0].part.value
    for steps, message in (
        (["q=@bits=4", "@bits=8"], "already quantised to 4 bits"),
        ([made["tuned"], "q=@bits=4", f"{made['tuned']}@on=q"], "cannot be applied on top"),
        ([f"{made['merged']}@on=base"], "is a whole model, not an adapter"),
        (["nowhere/at/all"], "step 'all': model 'nowhere/at/all': no such folder"),
    ):
        with pytest.raises(UsageError, match=message):
            measured(base, corpora, *steps)


@pytest.mark.full
def test_the_command(
    base: Path, made: dict[str, Path], corpora: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    files = ("--html", tmp_path / "page.html", "--markdown", tmp_path / "table.md")
    how = ("--text", corpora / "general.jsonl", "--context", 32, "--no-cache")
    code, out, err = call(monkeypatch, capsys, "chain", base, made["tuned"], made["twice"], *how, *files, "--json")
    assert code == 0, err
    row = json.loads(out)
    assert "2.00 times what adapter 'tuned' adds" in err
    assert (
        f"| `tuned` | adapter on base | {row['steps'][0]['forgetting']:.4f} ± " in (tmp_path / "table.md").read_text()
    )
    assert "Step by step" in (tmp_path / "page.html").read_text()
    code, _, err = call(monkeypatch, capsys, "chain", base, "x@bit=4", *how)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: step 'x@bit=4': no field 'bit'")

"""Adapters whose files do not fit the model are refused by name; others equal what PEFT saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from forgetting.config.schema import ModelConfig
from forgetting.errors import UsageError
from forgetting.models import adapters, causal, comparable
from forgetting.models.loading import Placement, load_model
from forgetting.models.pair import Pair, open_pair
from forgetting.models.sources import find

pytestmark = pytest.mark.full

T = ["q_proj", "v_proj"]
R = {"r": 2, "init_lora_weights": False}


def load(folder: Path) -> Any:
    return load_model(ModelConfig(source=str(folder)), find(str(folder)))[0]


def saved(base: Path, folder: Path, config: Any, prepare: Callable[[Any], Any] = lambda model: None) -> torch.Tensor:
    """An adapter with random weights in a folder, and its logits on the tokens of the probe."""
    from peft import get_peft_model

    torch.manual_seed(1)
    model = load(base)
    prepare(model)
    own = {id(parameter) for parameter in model.parameters()}
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if id(parameter) not in own:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.eval().save_pretrained(folder)
    return causal.probe(tuned)


def opened(base: Path, adapter: Path) -> Pair:
    return open_pair(str(base), str(adapter), settings=ModelConfig(source="-"), placement=Placement())


def windows_of(vocabulary: int) -> Any:
    """Three short documents of random tokens."""
    import numpy as np

    from forgetting.data.windows import Windows

    offsets = np.array([0, 9, 26, 56], np.int64)
    predicted = np.ones(56, bool)
    predicted[offsets[:-1]] = False
    ids = np.random.default_rng(0).integers(0, vocabulary, 56).astype(np.int32)
    return Windows(ids, predicted, offsets, np.arange(3, dtype=np.int32), ("a", "b", "c"))


def lora(**options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"target_modules": T, "task_type": "CAUSAL_LM", **R, **options})


def variants() -> dict[str, Callable[[], Any]]:
    import peft

    return {
        "lora": lora,
        "dora": lambda: lora(use_dora=True),
        "alora": lambda: lora(alora_invocation_tokens=[5]),
        "biases": lambda: lora(lora_bias=True),
        "parameters": lambda: lora(target_parameters=["mlp.up_proj.weight"]),
        "tokens": lambda: lora(trainable_token_indices=[3, 4]),
        "saved": lambda: lora(modules_to_save=["lm_head", "embed_tokens", "norm"]),
        "embedding": lambda: lora(target_modules=[*T, "embed_tokens"]),
        "replicated": lambda: lora(layer_replication=[[0, 2], [1, 2]]),
        "pissa": lambda: lora(init_lora_weights="pissa"),
        "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        "vera": lambda: peft.VeraConfig(target_modules=["q_proj"], r=4),
        "loha": lambda: peft.LoHaConfig(target_modules=T, r=2),
        "fourier": lambda: peft.FourierFTConfig(target_modules=T, n_frequency=20),
        "vblora": lambda: peft.VBLoRAConfig(target_modules=T, r=2, num_vectors=8, vector_length=8),
        "vblora-kept": lambda: peft.VBLoRAConfig(
            target_modules=T, r=2, num_vectors=8, vector_length=8, save_only_topk_weights=True
        ),
        "shadow": lambda: peft.get_peft_config({"peft_type": "SHADOW", "task_type": "CAUSAL_LM"}),
        "oft": lambda: peft.OFTConfig(target_modules=T, r=0, oft_block_size=4),
        "ln": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
        "shira": lambda: peft.ShiraConfig(target_modules=T, r=2, mask_type="random"),
    }


FEW = ("lora", "dora", "saved", "replicated", "prompt")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in FEW else pytest.mark.full) for k in variants()])
def test_an_adapter_is_what_was_saved_and_its_base_is_the_base(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    want = saved(tiny_model, tmp_path / "adapter", variants()[kind]())
    torch.manual_seed(99)  # the random numbers that loading draws must not matter
    pair = opened(tiny_model, tmp_path / "adapter")
    torch.testing.assert_close(causal.probe(pair.tuned), want, rtol=0, atol=1e-6)
    if kind == "alora":  # none of the probe's tokens activates it
        assert "applies it after its last invocation" in pair.notices[0]
    else:
        assert float((want - causal.probe(load(tiny_model))).abs().max()) > 1e-4
    tokens = causal.plain_tokens(pair.tuned)
    with adapters.as_base(pair.base):
        assert torch.equal(causal.probe(pair.base, tokens), causal.probe(load(tiny_model), tokens))
    beside = kind in ("replicated", "pissa")
    assert (pair.base is not pair.tuned) == beside
    assert any("loaded a second time" in notice for notice in pair.notices) == beside


def changed(adapter: Path, rename: Callable[[str], str | None], **config: Any) -> None:
    file = adapter / "adapter_model.safetensors"
    kept = {new: tensor for name, tensor in load_file(file).items() if (new := rename(name)) is not None}
    save_file(kept, file)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: name.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."),
        lambda name: name.replace("lora_A.", "lora_A.my-task.").replace("lora_B.", "lora_B.my-task."),
        lambda name: (
            name.removeprefix("base_model.model.").replace("_A.", "_A.weight_2.").replace("_B.", "_B.weight_2.")
        ),
    ],
)
def test_known_names_are_repaired_with_a_notice(tiny_model: Path, tmp_path: Path, rename: Callable[[str], str]) -> None:
    want = saved(tiny_model, tmp_path, lora())
    changed(tmp_path, rename)
    pair = opened(tiny_model, tmp_path)
    assert torch.equal(causal.probe(pair.tuned), want)
    assert any("names of weights were repaired" in notice for notice in pair.notices)


def in_training(adapter: Path, name: str, *, whole: bool = False, base: Path) -> None:
    """Give the weights of an adapter the names that they have in training; with `whole`, those of its base too."""
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(load(base), str(adapter), adapter_name=name)
    kept = {key: tensor.clone() for key, tensor in tuned.state_dict().items() if whole or name in key.split(".")}
    save_file(kept, adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", ["lora", "dora", "saved", "ia3", "tokens", "embedding"])
@pytest.mark.parametrize("name", ["default", "my-task"])
def test_an_adapter_under_its_names_in_training_is_the_one_that_was_saved(
    tiny_model: Path, tmp_path: Path, kind: str, name: str
) -> None:
    want = saved(tiny_model, tmp_path, variants()[kind]())
    in_training(tmp_path, name, base=tiny_model)
    assert torch.equal(causal.probe(opened(tiny_model, tmp_path).tuned), want)


def test_a_file_with_all_weights_of_a_tuned_model_is_that_model(tiny_model: Path, tmp_path: Path) -> None:
    want = saved(tiny_model, tmp_path, lora())
    in_training(tmp_path, "mine", whole=True, base=tiny_model)
    pair = opened(tiny_model, tmp_path)
    assert torch.equal(causal.probe(pair.tuned), want)
    assert pair.base is pair.tuned
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: one if "lora_" in name else one * 1.1 for name, one in load_file(file).items()}, file)
    pair = opened(tiny_model, tmp_path)  # of another base model
    assert float((causal.probe(pair.tuned) - want).abs().max()) > 1e-4
    tokens = causal.plain_tokens(pair.tuned)
    assert torch.equal(causal.probe(pair.base, tokens), causal.probe(load(tiny_model), tokens))


def test_a_file_with_two_adapters_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    saved(tiny_model, tmp_path, lora())
    file = tmp_path / "adapter_model.safetensors"
    kept = load_file(file)
    both = {key.replace(".weight", f".{name}.weight"): one.clone() for key, one in kept.items() for name in ("a", "b")}
    save_file(both, file)
    with pytest.raises(UsageError, match=r"contains the weights of 2 adapters \(a, b\); save the one to measure"):
        opened(tiny_model, tmp_path)


def image_model(kind: str, folder: Path, tokenizer: Path) -> None:
    """A tiny model that also reads images, on disk."""
    import transformers

    text = {
        **{"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "bos_token_id": 0},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "eos_token_id": 0, "max_position_embeddings": 128},
    }
    torch.manual_seed(0)
    if kind == "llava":
        seen = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        config: Any = transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**text),
            vision_config=transformers.CLIPVisionConfig(**seen, image_size=8, patch_size=4),
            image_token_index=59,
        )
    else:
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        config = transformers.Qwen2VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4},
            tie_word_embeddings=False,
            **{"image_token_id": 59, "video_token_id": 58, "vision_start_token_id": 57, "vision_end_token_id": 56},
        )
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, folder)


INSIDE = "base_model.model.model."
OLD = {
    "qwen2_vl": lambda name: name.replace(f"{INSIDE}language_model.", INSIDE).replace(
        f"{INSIDE}visual.", "base_model.model.visual."
    ),
    "llava": lambda name: name.replace(f"{INSIDE}language_model.", "base_model.model.language_model.model.").replace(
        "base_model.model.lm_head.", "base_model.model.language_model.lm_head."
    ),
}
"""Names that transformers 4.45 had for weights of these models."""


@pytest.mark.parametrize("kind", OLD)
def test_adapters_with_the_names_of_older_versions_are_the_same(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    image_model(kind, base, tiny_model)
    targets = r".*(layers\.\d+\.self_attn\.q_proj|layers\.\d+\.mlp\.down_proj|attn\.qkv)"
    want = saved(base, adapter, lora(target_modules=targets, use_dora=True, modules_to_save=["lm_head"]))
    before = list(load_file(adapter / "adapter_model.safetensors"))
    changed(adapter, OLD[kind])
    assert set(before) != set(load_file(adapter / "adapter_model.safetensors"))
    pair = opened(base, adapter)
    assert torch.equal(causal.probe(pair.tuned), want)
    assert any("names of weights were repaired" in notice for notice in pair.notices)


def test_older_names_are_refused_if_a_pattern_would_no_longer_apply(tiny_model: Path, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    image_model("qwen2_vl", base, tiny_model)
    layer = "model.{}layers.0.self_attn.q_proj"
    want = saved(base, adapter, lora(alpha_pattern={layer.format("language_model."): 64}))
    changed(adapter, OLD["qwen2_vl"], alpha_pattern={layer.format(""): 64})
    with pytest.raises(UsageError, match="fit nowhere in it"):
        opened(base, adapter)
    changed(adapter, lambda name: name, alpha_pattern={r"layers\.0\.self_attn\.q_proj": 64})
    assert torch.equal(causal.probe(opened(base, adapter).tuned), want)


def test_shadow_states_are_made_anew_for_each_batch(tiny_model: Path, tmp_path: Path) -> None:
    from forgetting.measuring.measure import measure

    saved(tiny_model, tmp_path, variants()["shadow"]())
    one, several = (
        measure(str(tiny_model), str(tmp_path), text=windows_of(27), cache_dir=None, batch_tokens=tokens)
        for tokens in (30, 200)
    )
    assert one.forgetting.value == pytest.approx(several.forgetting.value, abs=1e-5)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            lambda name: name.replace("model.layers", "model.language_model.layers"),
            "not in the file.*fit nowhere in it",
        ),
        (
            lambda name: name.replace("layers.1.", "layers.7."),
            r"layers\.1\..*not in the file.*layers\.7\..*fit nowhere in it",
        ),
        (lambda name: None if "layers.1.self_attn.q_proj.lora_B" in name else name, r"q_proj\.lora_B.*not in the file"),
        (lambda name: name.replace("q_proj", "o_proj"), "fit nowhere in it"),
        (lambda name: None, "contains no weights"),
    ],
)
def test_weights_that_fit_no_module_are_refused_by_name(
    tiny_model: Path, tmp_path: Path, rename: Callable[[str], str | None], message: str
) -> None:
    saved(tiny_model, tmp_path, lora())
    changed(tmp_path, rename)
    with pytest.raises(UsageError, match=message) as refused:
        opened(tiny_model, tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 3}, "does not fit the base model.*size mismatch"),
        ({"target_modules": ["nonsense"]}, "does not fit the base model.*nonsense"),
        ({"target_modules": ["q_proj"]}, "fit nowhere in it"),
        ({"modules_to_save": ["lm_head"]}, r"does not fit.*lm_head"),
        ({"peft_type": "NONSENSE"}, "adapter_config.json cannot be read.*NONSENSE"),
        ({"peft_type": "IA3"}, "does not fit|cannot be read|fit nowhere"),
        ({"task_type": "SEQ_CLS"}, "made for the task SEQ_CLS"),
        ({"task_type": "NONSENSE"}, "adapter_config.json cannot be read.*NONSENSE"),
        ({"init_lora_weights": "pissa_niter_4"}, "draws random numbers on every load"),
        ({"init_lora_weights": "corda"}, "cannot apply it to the base model.*eigens"),
        ({"init_lora_weights": "nonsense"}, "PEFT cannot apply it to the base model.*nonsense|cannot be read"),
        ({"r": "two"}, 'r: got "two"; allowed: a whole number'),
        ({"lora_alpha": None}, "lora_alpha: got null; allowed: a number"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path: got 3"),
        ({"trainable_token_indices": [1.5]}, r"trainable_token_indices: got \[1.5\]"),
        ({"trainable_token_indices": {"lm_head": 3}}, "trainable_token_indices: got"),
        ({"alora_invocation_tokens": 3}, "alora_invocation_tokens: got 3"),
        ({"trainable_token_indices": [999]}, "does not fit|fit nowhere in it|not in the file"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(
    tiny_model: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    saved(tiny_model, tmp_path, lora())
    changed(tmp_path, lambda name: name, **config)
    with pytest.raises(UsageError, match=message) as refused:
        opened(tiny_model, tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"r": ', '{"r": 2}', "null"])
def test_a_damaged_configuration_is_refused(tiny_model: Path, tmp_path: Path, text: str) -> None:
    saved(tiny_model, tmp_path, lora())
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UsageError, match=r"adapter_config\.json cannot be read"):
        opened(tiny_model, tmp_path)


def test_empty_placeholders_of_deepspeed_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """DeepSpeed ZeRO 3 leaves placeholders of size zero."""
    saved(tiny_model, tmp_path, lora())
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: torch.empty(0) for name in load_file(file)}, file)
    with pytest.raises(UsageError, match=r"contains no weights.*ZeRO 3"):
        opened(tiny_model, tmp_path)


def test_options_that_this_peft_does_not_know_are_noticed(tiny_model: Path, tmp_path: Path) -> None:
    saved(tiny_model, tmp_path, lora())
    changed(tmp_path, lambda name: name, use_tomorrow=True, off=False, peft_version="9.9")
    (notice,) = opened(tiny_model, tmp_path).notices
    assert "use_tomorrow of adapter_config.json (written by PEFT 9.9)" in notice


@pytest.mark.parametrize("rows", [30, 25], ids=["added", "cut"])
@pytest.mark.parametrize("kind", ["saved", "embedding-alone", "lora", "tokens"])
def test_vocabularies_of_other_sizes(tiny_model: Path, tmp_path: Path, kind: str, rows: int) -> None:
    from forgetting.measuring.measure import measure

    options: dict[str, Any] = {
        "saved": {"modules_to_save": ["lm_head", "embed_tokens"]},
        "embedding-alone": {"modules_to_save": ["embed_tokens"]},
        "lora": {"target_modules": [*T, "embed_tokens", "lm_head"]},
        "tokens": {"trainable_token_indices": [3, rows - 1]},
    }[kind]
    saved(tiny_model, tmp_path, lora(**options), lambda model: model.resize_token_embeddings(rows, mean_resizing=False))
    pair = opened(tiny_model, tmp_path)
    assert (comparable.head_rows(pair.base), comparable.head_rows(pair.tuned)) == (27, rows)
    found = measure(str(tiny_model), str(tmp_path), text=windows_of(25), cache_dir=None)
    assert any(f"{min(27, rows)}, with probabilities renormalised" in notice for notice in found.notices)
    assert found.forgetting.value != 0


def test_an_adapter_on_a_quantised_copy_goes_on_with_a_notice(tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "Llama-9-1B"
    shutil.copytree(tiny_model, base)
    saved(tiny_model, tmp_path / "adapter", lora())
    changed(tmp_path / "adapter", str, base_model_name_or_path="unsloth/llama-9-1b-unsloth-bnb-4bit")
    assert "a quantised copy of" in opened(base, tmp_path / "adapter").notices[0]


@pytest.mark.parametrize(
    ("name", "original", "same"),
    [
        ("unsloth/Llama-3.2-1B-bnb-4bit", "meta-llama/Llama-3.2-1B", True),
        ("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct", True),
        ("unsloth/llama-3-8b-bnb-4bit", "meta-llama/Meta-Llama-3-8B", True),
        ("unsloth/mistral-7b-bnb-4bit", "mistralai/Mistral-7B-v0.1", True),
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "meta-llama/Llama-3.2-1B", False),
        ("unsloth/Llama-3.2-3B-bnb-4bit", "meta-llama/Llama-3.2-1B", False),
        ("org/other", "org/model", False),
        ("org/model", "org/model-bnb-4bit", False),
    ],
)
def test_quantised_copies_are_recognised_by_their_names(name: str, original: str, same: bool) -> None:
    assert comparable._is_quantised_copy(name, original) is same


def test_an_adapter_that_changes_nothing_is_measured_and_says_so(tiny_model: Path, tmp_path: Path) -> None:
    from forgetting.measuring.measure import measure

    saved(tiny_model, tmp_path, lora())
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, file)
    windows = windows_of(27)
    found = measure(str(tiny_model), str(tmp_path), text=windows, cache_dir=None)
    assert found.forgetting.value == 0
    assert any("change nothing" in notice for notice in found.notices)
    (tmp_path / "b").mkdir()
    saved(tiny_model, tmp_path / "b", lora())
    found = measure(str(tiny_model), str(tmp_path / "b"), text=windows, cache_dir=None)
    assert not any("change nothing" in notice for notice in found.notices)


@pytest.mark.parametrize("positions", ["learned", "tuned-built-for-fewer"])
def test_windows_fit_both_models(models: dict[str, Path], tmp_path: Path, corpora: Path, positions: str) -> None:
    """Virtual tokens use up positions, and a tuned model may have fewer positions than its base."""
    import peft
    import transformers

    from forgetting.measuring.measure import measure

    base = models["gpt2"]
    if positions == "learned":
        config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
        saved(base, tmp_path / "tuned", config)
    else:
        short = transformers.AutoConfig.from_pretrained(base, n_positions=32)
        transformers.GPT2LMHeadModel(short).save_pretrained(tmp_path / "tuned")
    text = str(corpora / "general.jsonl")
    found = measure(str(base), str(tmp_path / "tuned"), text=text, cache_dir=None)
    assert found.context == {"learned": 61, "tuned-built-for-fewer": 32}[positions]
    with pytest.raises(UsageError, match=f"context 64: the models were built for {found.context} tokens"):
        measure(str(base), str(tmp_path / "tuned"), text=text, cache_dir=None, context=64)


def test_an_embedding_with_fewer_rows_than_the_head(tiny_model: Path) -> None:
    from forgetting.measuring.measure import measure

    tuned = load(tiny_model)
    tuned.model.embed_tokens = torch.nn.Embedding(20, 32)
    with pytest.raises(UsageError, match="the tuned model's vocabulary has 20 rows"):
        measure(load(tiny_model), tuned, text=windows_of(27))


def test_what_a_library_says_of_a_text_is_one_error(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetting.measuring.measure import measure

    base, tuned = load(tiny_model), load(tiny_model)
    forward = tuned.model.forward

    def failing(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[1] > 20:
            raise RuntimeError("shapes\nand more")
        return forward(*args, **kwargs)

    monkeypatch.setattr(tuned.model, "forward", failing)
    with pytest.raises(UsageError, match=r"^LlamaForCausalLM: cannot be run on windows of 30 tokens: shapes$"):
        measure(base, tuned, text=windows_of(27))


@pytest.mark.parametrize("text", ["", "{}", '{"version": 3}', "nonsense"])
def test_a_damaged_tokenizer_of_the_tuned_model_is_one_error(tiny_model: Path, tmp_path: Path, text: str) -> None:
    saved(tiny_model, tmp_path, lora())
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UsageError, match="its tokenizer cannot be read"):
        opened(tiny_model, tmp_path)

"""Weights that do not fit the model are refused by name; weights ignored for a reason are not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forgetting.config.schema import ModelConfig
from forgetting.errors import UsageError
from forgetting.models.loading import Placement, load_base, load_model
from forgetting.models.pair import open_pair
from forgetting.models.sources import find
from forgetting.models.weights import clean, wrapped_in

SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 27}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
NONE: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None}


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a random Llama whose head is not tied to its embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("untied")
    LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS, **NONE, tie_word_embeddings=False)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, folder)
    return folder


def changed(
    source: Path,
    folder: Path,
    rename: Callable[[str], str | None] = lambda name: name,
    add: Mapping[str, torch.Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A copy of a model's folder with other names, weights or configuration; a weight renamed to None is left out."""
    shutil.copytree(source, folder)
    file = folder / "model.safetensors"
    kept = {new: tensor for name, tensor in load_file(file).items() if (new := rename(name)) is not None}
    save_file({**kept, **(add or {})}, file, {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(config or {})))
    return folder


def load(folder: Path) -> tuple[Any, list[str]]:
    return load_model(ModelConfig(source=str(folder)), find(str(folder)))


def without(ending: str) -> Callable[[str], str | None]:
    return lambda name: None if name.endswith(ending) else name


def test_weights_that_fit_are_loaded_without_a_notice(untied: Path) -> None:
    model, notices = load(untied)
    stored = load_file(untied / "model.safetensors")
    assert notices == []
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rename": without("lm_head.weight")}, r"lm_head\.weight is missing.*tie_word_embeddings"),
        ({"rename": without("up_proj.weight")}, r"layers\.0\.mlp\.up_proj\.weight.*layers\.1.*missing"),
        ({"config": {"num_hidden_layers": 1}}, r"model\.layers\.1\..*6 more.*num_hidden_layers 1.*have 2"),
        ({"config": {"num_hidden_layers": 3}}, r"model\.layers\.2\..*are missing"),
        ({"config": {"intermediate_size": 40}}, r"down_proj\.weight is \[32, 48\].*\[32, 40\].*6 weights"),
        ({"config": {"vocab_size": 30}}, r"\[27, 32\] in the files and \[30, 32\]"),
        ({"config": {"num_attention_heads": 3}}, "cannot be loaded|do not fit"),
        ({"config": {"num_key_value_heads": 3}}, r"k_proj\.weight is \[16, 32\]"),
        ({"config": {"hidden_act": "nonsense"}}, "cannot be loaded.*nonsense"),
        ({"config": {"model_type": "nonsense"}}, "cannot be loaded.*nonsense"),
        ({"config": {"hidden_size": "32"}}, "cannot be loaded"),
        ({"config": {"dtype": "float7"}}, "config.json: dtype: got 'float7'"),
        ({"config": {"rope_parameters": {"rope_type": "none"}}}, "cannot be"),
        ({"rename": lambda name: f"x.{name}"}, "missing.*no place"),
        (
            {"add": {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}},
            r"q_norm\.weight of the files has no place",
        ),
        ({"add": {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}}, r"q_proj\.bias of the files has no place"),
        ({"add": {"score.weight": torch.ones(2, 32)}}, r"score\.weight of the files has no place"),
        ({"add": {"model.encoder.x.weight": torch.ones(2)}}, "no place"),
        ({"add": {"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1)}}, "no place"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    untied: Path, tmp_path: Path, how: dict[str, Any], message: str
) -> None:
    folder = changed(untied, tmp_path / "model", **how)
    with pytest.raises(UsageError, match=f"(?s){message}") as refused:
        load(folder)
    assert "\n" not in str(refused.value)
    for base, tuned in ((folder, untied), (untied, folder)):
        with pytest.raises(UsageError, match="model"):
            open_pair(str(base), str(tuned), settings=ModelConfig(source="-"), placement=Placement())


def test_heads_that_fit_the_weights_and_cannot_be_run(untied: Path, tmp_path: Path) -> None:
    """6 query heads on 4 key heads: each matrix has the size given in config.json."""
    from transformers import MistralConfig, MistralForCausalLM

    heads = {"num_attention_heads": 6, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 64}
    folder = changed(untied, tmp_path / "model")
    MistralForCausalLM(MistralConfig(**SMALL, **heads, **NONE)).save_pretrained(folder)
    with pytest.raises(UsageError, match="cannot be run"):
        load(folder)


@pytest.mark.parametrize(
    "add",
    [
        {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)},
        {
            "model.layers.0.self_attn.attn.bias": torch.ones(1, 1, 64, 64),
            "model.layers.0.attn.masked_bias": torch.ones(1),
        },
        {"model.position_ids": torch.arange(64)[None]},
    ],
    ids=["rotary", "masks", "positions"],
)
def test_tables_stored_by_older_versions_are_ignored(
    untied: Path, tmp_path: Path, add: dict[str, torch.Tensor]
) -> None:
    _, notices = load(changed(untied, tmp_path / "model", add=add))
    assert notices == []


def test_parts_that_text_never_uses_are_left_out_with_a_notice(untied: Path, tmp_path: Path) -> None:
    names = ("vision_tower.a.weight", "vision_tower.b.weight", "v_head.summary.bias")
    towers = {name: torch.ones(2) for name in names}
    _, notices = load(changed(untied, tmp_path / "a", add=towers))
    assert ["vision_tower (2 weights)" in notices[1], "v_head (1 weight)" in notices[0]] == [True, True]
    ahead = {"model.layers.2.eh_proj.weight": torch.ones(2, 2)}
    _, notices = load(changed(untied, tmp_path / "b", add=ahead, config={"num_nextn_predict_layers": 1}))
    assert notices == []


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"_fsdp_wrapped_module.{name}".replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
        lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
    ],
)
def test_prefixes_of_wrappers_are_removed_with_a_notice(
    untied: Path, tmp_path: Path, rename: Callable[[str], str]
) -> None:
    model, notices = load(changed(untied, tmp_path / "model", rename))
    stored = load_file(untied / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert len(notices) == 1
    assert "left in the names of weights" in notices[0]


def test_two_weights_are_never_merged_into_one(untied: Path, tmp_path: Path) -> None:
    assert wrapped_in(["_orig_mod.a.weight", "a.weight"]) is None
    assert wrapped_in(["a.weight"]) is None
    assert clean("_orig_mod.module.model.layers.0._orig_mod.mlp.weight") == "model.layers.0.mlp.weight"
    both = {"_orig_mod.lm_head.weight": torch.zeros(27, 32)}
    with pytest.raises(UsageError, match=r"_orig_mod\.lm_head\.weight of the files has no place"):
        load(changed(untied, tmp_path / "model", add=both))


def test_a_tied_model_whose_file_has_another_head_keeps_it(tiny_model: Path, tmp_path: Path) -> None:
    head = {"lm_head.weight": torch.randn(27, 32)}
    model, notices = load(changed(tiny_model, tmp_path / "model", add=head))
    assert torch.equal(model.lm_head.weight, head["lm_head.weight"])
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert [notice.split(": ", 1)[1] for notice in notices] == [
        "its config.json says tie_word_embeddings true, but its files have a head that differs from the embeddings, "
        "and this head is measured; a program that follows config.json runs another model"
    ]


def test_tied_embeddings_that_were_saved_twice_are_one_weight(tiny_model: Path, tmp_path: Path) -> None:
    embeddings = load_file(tiny_model / "model.safetensors")["model.embed_tokens.weight"]
    model, notices = load(changed(tiny_model, tmp_path / "model", add={"lm_head.weight": embeddings.clone()}))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not notices


def test_a_missing_shard_and_a_damaged_one(untied: Path, tmp_path: Path) -> None:
    folder = changed(untied, tmp_path / "model")
    model, _ = load(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    first = min(folder.glob("model-00001*"))
    first.write_bytes(first.read_bytes()[:-10])
    with pytest.raises(UsageError, match=r"model-00001.*damaged weights"):
        load(folder)
    first.unlink()
    with pytest.raises(UsageError, match=r"names model-00001.*, which does not exist"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "optimum.*quantised by gptq"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "gptqmodel"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "bitsandbytes .* 4 bits, but",
        ),
        ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes .* to 8 bits, but its files hold no quantised"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"quant_method": "torchao", "quant_type": "int4_weight_only"}}, "torchao"),
        ({"quantization_config": {"quant_method": "hqq"}}, "hqq"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "aqlm"),
        ({"quantization_config": {"quant_method": "quanto"}}, "quanto"),
        ({"quantization_config": [4]}, "cannot be loaded"),
    ],
)
def test_quantised_weights_name_the_package_they_need_or_are_missed(
    untied: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        load(changed(untied, tmp_path / "model", config=config))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"])
def test_flash_attention_is_sdpa_where_it_is_not_installed(untied: Path, tmp_path: Path, attention: str) -> None:
    model, notices = load(changed(untied, tmp_path / "model", config={"_attn_implementation": attention}))
    assert model.config._attn_implementation == "sdpa"
    assert "using sdpa instead" in notices[0]


def test_an_adapter_in_the_base_folder_is_left_out(untied: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = changed(untied, tmp_path / "model")
    get_peft_model(load(untied)[0], LoraConfig(r=2, init_lora_weights=False)).save_pretrained(folder)
    base = load_base(ModelConfig(source=str(folder)))
    stored = load_file(untied / "model.safetensors")
    assert set(base.model.state_dict()) == set(stored)
    assert "measured without it" in base.notices[0]
    with pytest.raises(UsageError, match="contains both a full model and an adapter"):
        open_pair(str(untied), str(folder), settings=ModelConfig(source="-"), placement=Placement())
    (folder / "adapter_model.safetensors").unlink()  # left over from merging
    pair = open_pair(str(untied), str(folder), settings=ModelConfig(source="-"), placement=Placement())
    assert "measured without it" in pair.notices[0]


def test_a_folder_of_checkpoints_names_them(untied: Path, tmp_path: Path) -> None:
    for step in (20, 100):
        shutil.copytree(untied, tmp_path / "run" / f"checkpoint-{step}")
    for base, tuned in (("run", str(untied)), (str(untied), "run")):
        names = [str(tmp_path / name) if name == "run" else name for name in (base, tuned)]
        with pytest.raises(UsageError, match="contains checkpoint-20, checkpoint-100 but is not a model itself"):
            open_pair(*names, settings=ModelConfig(source="-"), placement=Placement())


def test_the_same_weights_used_otherwise_are_noticed(untied: Path, tmp_path: Path) -> None:
    config = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rms_norm_eps": 1e-5, "dtype": "float32"}
    folder = changed(untied, tmp_path / "model", config=config)
    pair = open_pair(str(untied), str(folder), settings=ModelConfig(source="-"), placement=Placement())
    (notice,) = pair.notices
    assert "rms_norm_eps (1e-06 and 1e-05)" in notice
    assert "rope_parameters" in notice
    assert open_pair(str(untied), str(untied), settings=ModelConfig(source="-"), placement=Placement()).notices == []


def test_models_in_different_dtypes_are_noticed(untied: Path, tmp_path: Path) -> None:
    half = AutoModelForCausalLM.from_pretrained(untied, dtype=torch.bfloat16)
    half.save_pretrained(shutil.copytree(untied, tmp_path / "half"))
    whole, stored = str(untied), str(tmp_path / "half")
    settings, placement = ModelConfig(source="-"), Placement()
    for base, tuned, ours, theirs in (
        (whole, stored, "float32", "bfloat16"),
        (stored, whole, "bfloat16", "float32"),
        (whole, half, "float32", "bfloat16"),
        (AutoModelForCausalLM.from_pretrained(untied), half, "float32", "bfloat16"),
    ):
        assert open_pair(base, tuned, settings=settings, placement=placement).notices == [
            f"the base model runs in {ours} and the tuned model in {theirs}, so forgetting includes the rounding; "
            "load both in one dtype (--dtype)"
        ]
    one = ModelConfig(source="-", dtype="float32")
    assert open_pair(whole, stored, settings=one, placement=placement).notices == []


def test_packed_weights_without_a_quantisation_config_are_refused(untied: Path, tmp_path: Path) -> None:
    """Weights of a quantised model whose config.json does not say that it is quantised."""
    name = "model.layers.0.mlp.up_proj.weight"
    for i, dtype in enumerate((torch.int8, torch.uint8, torch.float8_e4m3fn)):
        packed = {name: torch.ones(48, 32).to(dtype)}
        with pytest.raises(UsageError, match=r"up_proj\.weight: stored as .*no quantization_config"):
            load(changed(untied, tmp_path / str(i), add=packed))
    model, _ = load(changed(untied, tmp_path / "half", add={name: torch.ones(48, 32, dtype=torch.float16)}))
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, torch.ones(48, 32))


def scaled(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights of linear layers in 8 bits with a scale for each block of 16, and what they stand for."""
    stored, plain = dict(tensors), dict(tensors)
    for name in [name for name in tensors if "proj" in name]:
        stored[name] = (tensors[name] / 0.01).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = torch.full([size // 16 for size in tensors[name].shape], 0.01)
        plain[name] = stored[name].float() * 0.01
    return stored, plain


def test_weights_in_8_bits_need_their_scales(untied: Path, tmp_path: Path) -> None:
    """On a CPU, transformers reads such a weight without its scale as if the scale were 1."""
    stored, plain = scaled(load_file(untied / "model.safetensors"))
    method = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
    folder = changed(untied, tmp_path / "all", add=stored, config={"quantization_config": method})
    model, _ = load(folder)
    found = model.model.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(found.float(), plain["model.layers.0.mlp.up_proj.weight"])
    del stored["model.layers.1.mlp.up_proj.weight_scale_inv"]
    folder = changed(untied, tmp_path / "one", add=stored, config={"quantization_config": method})
    with pytest.raises(UsageError, match=r"layers\.1\.mlp\.up_proj\.weight: stored as F8_E4M3, .* not have the scales"):
        load(folder)
    unknown = {"quantization_config": {"quant_method": "modelopt"}}
    bare = {name: tensor for name, tensor in stored.items() if "scale" not in name}
    with pytest.raises(UsageError, match="stored as F8_E4M3, like quantised weights, but transformers cannot read mod"):
        load(changed(untied, tmp_path / "unknown", add=bare, config=unknown))


def test_a_git_lfs_pointer_instead_of_weights_is_refused(untied: Path, tmp_path: Path) -> None:
    folder = changed(untied, tmp_path / "model")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(UsageError, match="git lfs pull"):
        load(folder)


def test_only_the_set_of_weights_that_is_read_is_checked(untied: Path, tmp_path: Path) -> None:
    folder = changed(untied, tmp_path / "model", lambda name: f"_orig_mod.{name}")
    other = tmp_path / "sharded"
    load(untied)[0].save_pretrained(other, max_shard_size="8KB")
    for file in other.glob("model*"):
        shutil.copy(file, folder)
    model, notices = load(folder)
    assert "torch.compile" in notices[0]
    assert torch.equal(model.lm_head.weight, load_file(untied / "model.safetensors")["lm_head.weight"])


def test_two_sets_of_weights_are_refused_if_they_differ(untied: Path, tmp_path: Path) -> None:
    model, _ = load(untied)
    model.save_pretrained(tmp_path / "both", max_shard_size="5KB")
    for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(untied / file, tmp_path / "both")
    shards = sorted((tmp_path / "both").glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    assert load(tmp_path / "both")[1] == []  # both sets are the same weights

    one = load_file(shards[-1])
    name = next(iter(one))
    save_file({**one, name: one[name] + 0.5}, shards[-1], {"format": "pt"})
    with pytest.raises(UsageError, match=r"contains two sets of weights that differ, model\.safetensors and the files"):
        load(tmp_path / "both")
    shards[0].unlink()  # what is left of the second set cannot be loaded by any program
    assert load(tmp_path / "both")[1] == []
    (tmp_path / "both" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"index\.json: names .*, which does not exist"):
        load(tmp_path / "both")

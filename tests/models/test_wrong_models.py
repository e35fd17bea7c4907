"""Models and adapters with one wrong value: the error names the field and the cause."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, OFTConfig, get_peft_model

from forgetting.config.schema import ModelConfig
from forgetting.errors import UsageError
from forgetting.models import failures
from forgetting.models.attaching import adapter_config, attach
from forgetting.models.loading import load_base
from forgetting.models.sources import find

MISFIT = "was it made for another one?"


def _changed(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    model = load_base(ModelConfig(source=str(tiny_model))).model
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"r": "4"}, 'r: got "4"; allowed: a whole number of at least 1'),
        ({"r": -1}, "r: got -1; allowed: a whole number of at least 1"),
        ({"r": 0}, "r: got 0; allowed: a whole number of at least 1"),
        ({"r": None}, "r: got null; allowed: a whole number of at least 1"),
        ({"r": True}, "r: got true; allowed: a whole number of at least 1"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj: got 0; allowed: a whole number of at least 1"),
        ({"rank_pattern": [4]}, "rank_pattern: got [4]; allowed: an object with a number for each pattern"),
        ({"alpha_pattern": {"q_proj": "8"}}, 'alpha_pattern.q_proj: got "8"; allowed: a number of at most 268,435,456'),
        ({"lora_alpha": float("nan")}, "lora_alpha: got NaN; allowed: a number of at most 268,435,456"),
        ({"lora_alpha": 1e300}, "lora_alpha: got 1e+300; allowed: a number of at most 268,435,456"),
        ({"lora_dropout": 5}, "lora_dropout: got 5; allowed: a number from 0 to 1"),
        ({"lora_dropout": "0.1"}, 'lora_dropout: got "0.1"; allowed: a number from 0 to 1'),
        ({"use_rslora": "false"}, 'use_rslora: got "false"; allowed: true or false'),
        ({"init_lora_weights": "loftq"}, "init_lora_weights: 'loftq' needs loftq_config, which is empty"),
    ],
)
def test_a_field_of_an_adapter_is_named_with_what_is_allowed(adapter: Path, fields: dict[str, Any], says: str) -> None:
    _changed(adapter / "adapter_config.json", **fields)
    with pytest.raises(UsageError) as caught:
        adapter_config(find(str(adapter)))
    assert f"adapter_config.json: {says}" in str(caught.value)
    assert MISFIT not in str(caught.value)


@pytest.mark.parametrize(
    "fields", [{"lora_alpha": 0.5}, {"lora_alpha": -8}, {"lora_dropout": 1}, {"layers_pattern": None}]
)
def test_meaningful_values_are_accepted(adapter: Path, fields: dict[str, Any]) -> None:
    _changed(adapter / "adapter_config.json", **fields)
    assert adapter_config(find(str(adapter))) is not None


def test_a_rank_of_0_stands_for_a_block_size(tiny_model: Path, tmp_path: Path) -> None:
    model = load_base(ModelConfig(source=str(tiny_model))).model
    config = OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj"])
    get_peft_model(model, config).save_pretrained(tmp_path / "oft")
    assert adapter_config(find(str(tmp_path / "oft"))) is not None


def test_another_model_is_blamed_for_shapes_and_modules_alone(tiny_model: Path, adapter: Path) -> None:
    for fields, fits in (({"r": 3}, False), ({"target_modules": ["nowhere"]}, False), ({"bias": "some"}, True)):
        kept = (adapter / "adapter_config.json").read_text()
        _changed(adapter / "adapter_config.json", **fields)
        with pytest.raises(UsageError) as caught:
            attach(load_base(ModelConfig(source=str(tiny_model))).model, find(str(adapter)))
        assert (MISFIT in str(caught.value)) is not fits
        assert ("PEFT cannot apply it to the base model" in str(caught.value)) is fits
        (adapter / "adapter_config.json").write_text(kept)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rms_norm_eps": "x"}, "rms_norm_eps"),
        ({"num_attention_heads": 0}, "config.json: num_attention_heads: got 0; must be at least 1"),
        ({"hidden_size": -64}, "config.json: hidden_size: got -64; must be at least 1"),
        ({"vocab_size": 0}, "config.json: vocab_size: got 0; must be at least 1"),
        ({"dtype": "evil"}, "config.json: dtype: got 'evil'; give a dtype such as float32 or bfloat16"),
        ({"dtype": "nn"}, "config.json: dtype: got 'nn'"),
    ],
)
def test_a_field_of_a_model_is_named(tiny_model: Path, tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    _changed(tmp_path / "model" / "config.json", **fields)
    with pytest.raises(UsageError) as caught:
        load_base(ModelConfig(source=str(tmp_path / "model")))
    assert says in str(caught.value)
    assert not str(caught.value).endswith(":")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("'<=' not supported between 'str' and 'int'"), "'<=' not supported between 'str' and 'int'"),
        (TypeError("got 'str'"), "got 'str'"),
        (ValueError("'all of it'"), "all of it"),
        (KeyError("loftq_iter"), "no 'loftq_iter'"),
        (KeyError("a 'b' c"), "a 'b' c"),
        (ValueError("Validation error for field 'a':\n    X: Value must be positive"), None),
        (RuntimeError("Error(s):\n\tsize mismatch for a\n\tsize mismatch for b"), "size mismatch for a"),
        (ZeroDivisionError("integer modulo by zero"), "ZeroDivisionError: integer modulo by zero"),
        (ValueError("one\ntwo"), "one"),
        (ValueError(""), "ValueError"),
    ],
)
def test_a_librarys_message_keeps_its_quotes_and_its_reason(error: Exception, says: str | None) -> None:
    says = says or "Validation error for field 'a': X: Value must be positive"
    assert failures.first_line(error) == says


def test_a_librarys_message_is_bounded() -> None:
    assert len(failures.first_line(ValueError("a:\n" + "b" * 10**6))) == failures.SAID


def _tokenizer(tiny_model: Path, folder: Path, change: Any) -> Path:
    shutil.copytree(tiny_model, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def _replace(content: dict[str, Any], *pairs: tuple[str, str]) -> None:
    steps = [{"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in pairs]
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["model"]["vocab"].update(zzz=10**9), "token 'zzz' has id 1000000000; with"),
        (lambda c: c["added_tokens"].append({**c["added_tokens"][0], "id": 2**31, "content": "q"}), "token 'q' has"),
        (lambda c: _replace(c, (" ", "x" * 10_000)), "normalizer: content: 10,000 characters; at most 1,000"),
        (lambda c: _replace(c, (" ", "x" * 500)), "normalizer: its steps turn one character into 500; at most 100"),
        (lambda c: _replace(c, *[("a", "aa")] * 20), "normalizer: its steps turn one character into 1,048,576"),
    ],
)
def test_a_tokenizer_that_needs_unbounded_memory_is_refused(
    tiny_model: Path, tmp_path: Path, change: Any, says: str
) -> None:
    folder = _tokenizer(tiny_model, tmp_path / "model", change)
    with pytest.raises(UsageError, match=says):
        load_base(ModelConfig(source=str(folder)))


def test_many_replacements_of_different_characters_are_accepted(tiny_model: Path, tmp_path: Path) -> None:
    pairs = [(chr(0x2150 + i), "a/b") for i in range(8)]
    folder = _tokenizer(tiny_model, tmp_path / "model", lambda content: _replace(content, *pairs))
    assert load_base(ModelConfig(source=str(folder))).tokenizer.is_fast


def test_a_model_without_its_tokenizer_is_reported(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"its tokenizer cannot be loaded: tokenizer\.json"):
        load_base(ModelConfig(source=str(tmp_path / "model")))

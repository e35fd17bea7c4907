"""A tokenizer is what its tokenizer.json describes, also where transformers would replace parts of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from forgetting.config.schema import ModelConfig
from forgetting.models.loading import load_base
from forgetting.models.pair import own_tokenizer
from forgetting.models.sources import find


def _changed(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "GPT2TokenizerFast", "Qwen2TokenizerFast"])
def test_a_class_that_reads_text_differently_is_not_used(tiny_model: Path, tmp_path: Path, named: str) -> None:
    from tokenizers import Tokenizer

    shutil.copytree(tiny_model, tmp_path / "model")
    _changed(tmp_path / "model" / "tokenizer_config.json", tokenizer_class=named)
    text = "the old river went north ."
    want = Tokenizer.from_file(str(tiny_model / "tokenizer.json")).encode(text).ids
    config = ModelConfig(source=str(tmp_path / "model"))
    base = load_base(config)
    tuned = own_tokenizer(find(config.source), config)
    assert base.tokenizer(text)["input_ids"] == tuned(text)["input_ids"] == want
    assert base.tokenizer.chat_template == load_base(ModelConfig(source=str(tiny_model))).tokenizer.chat_template
    (notice,) = base.notices
    assert "reads text differently from tokenizer.json; tokenizer.json is used" in notice


def test_a_class_that_reads_text_alike_is_kept_without_a_notice(tiny_model: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(tiny_model, tmp_path / "model")
    raw = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="!").save_pretrained(tmp_path / "model")
    _changed(tmp_path / "model" / "tokenizer_config.json", tokenizer_class="GPT2TokenizerFast")
    base = load_base(ModelConfig(source=str(tmp_path / "model")))
    assert type(base.tokenizer).__name__ == "GPT2Tokenizer"
    assert base.notices == ()

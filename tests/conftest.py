"""A tiny model and corpora in the real formats, created here: tests need no network, no GPU and no shipped weights."""

from __future__ import annotations

import gc
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported: one core per worker

import numpy as np
import pytest

gc.disable()  # until everything is imported: see `pytest_collection_finish`

if TYPE_CHECKING:
    from forgetting.tuning.methods import Context

WORDS = (
    *("the", "a", "old", "new", "river", "town", "guild", "baker", "smith", "north"),
    *("south", "went", "came", "saw", "built", "sold", "bread", "iron", "bridge", "boat"),
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def sentences(seed: int, count: int) -> str:
    """`count` random sentences over WORDS, the same for the same seed."""
    generator = np.random.default_rng(seed)
    return " ".join(" ".join(generator.choice(WORDS, size=9)) + " ." for _ in range(count))


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection: each training starts with one, over millions of objects."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _notices_can_be_heard() -> None:
    """`measure`, called in this process, sends notices only to standard error; later tests could not capture them."""
    logger = logging.getLogger("forgetting")
    logger.handlers, logger.propagate = [], True


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`measure` and studies cache in a folder of the tests, never in the user's."""
    os.environ["FORGETTING_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of 20 k parameters and a word tokenizer with a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    special = ["<pad>", "<unk>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocabulary = {word: i for i, word in enumerate([*special, ".", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train.jsonl` (plain text), `chat.jsonl`, and `general.jsonl`."""
    folder = tmp_path_factory.mktemp("corpora")

    def write(name: str, rows: list[dict[str, object]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    write("train.jsonl", [{"id": f"t{i}", "text": sentences(i, 4)} for i in range(60)])
    write("general.jsonl", [{"id": f"g{i}", "text": sentences(1000 + i, 4)} for i in range(12)])
    write(
        "chat.jsonl",
        [
            {
                "messages": [
                    {"role": "user", "content": sentences(2000 + i, 1)},
                    {"role": "assistant", "content": sentences(3000 + i, 1)},
                ]
            }
            for i in range(40)
        ],
    )
    return folder


@pytest.fixture(scope="session")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tiny Llama and of a tiny GPT-2, which has biases and transposed linear layers."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    widths = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 27}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    folder = tmp_path_factory.mktemp("tiny-gpt2")
    GPT2LMHeadModel(GPT2Config(**widths, **none, pad_token_id=0, eos_token_id=2, bos_token_id=2)).save_pretrained(
        folder
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_model / name).read_bytes())
    return {"llama": tiny_model, "gpt2": folder}


@pytest.fixture(scope="session")
def context(tiny_model: Path, corpora: Path) -> Context:
    """What a method knows about a run: the tiny model's tokenizer and two corpora."""
    from forgetting.config.schema import ModelConfig, TextConfig
    from forgetting.data.documents import load_corpus
    from forgetting.data.tokenizing import tokenize
    from forgetting.models.loading import load_tokenizer
    from forgetting.tuning.methods import Context

    tokenizer = load_tokenizer(ModelConfig(source=str(tiny_model)))
    train, measured = (
        tokenize(load_corpus(TextConfig(source=str(corpora / name))), tokenizer, 32)
        for name in ("train.jsonl", "general.jsonl")
    )
    return Context(seed=0, train=train, measured=measured, tokenizer=tokenizer, length=32)

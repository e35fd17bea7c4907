"""With a tolerance, a large text gives the same documents in the same order as when it is tokenised whole."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from forgetting import measure
from forgetting.config.schema import TextConfig
from forgetting.data import documents, large, untokenized
from forgetting.data.documents import load_corpus
from forgetting.data.tokenizing import tokenize
from forgetting.measuring.sampling import in_random_order

WORDS = [
    "the",
    "old",
    "river",
    "town",
    "naïve",
    "Ωmega",
    "e\u0301",
    "ﬁsh",
    "字",
    "🙂",
    "<|end|>",
    "▁",
    "1984",
    "--------",
]


def byte_level(*, bos: bool = False, normalizer: Any = None) -> PreTrainedTokenizerFast:
    """A tokenizer like those of GPT-2, Llama 3 or Qwen."""
    raw = Tokenizer(models.BPE())
    if normalizer is not None:
        raw.normalizer = normalizer
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,3}|\s?\w+|\s+|[^\w\s]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|end|>", "<|bos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([" ".join(WORDS)] * 50, trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing("<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>")


def with_fallback() -> PreTrainedTokenizerFast:
    """A tokenizer like that of Llama 2: no pre-tokenizer, spaces as a letter, bytes for unknown characters."""
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz", "th", "the"]
    vocabulary += ["▁the", "▁▁"]
    ranks = {token: i for i, token in enumerate(vocabulary)}
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁")]
    raw = Tokenizer(models.BPE(ranks, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<unk>", pad_token="<unk>")


TOKENIZERS = {
    "bytes": byte_level,
    "bytes with BOS": lambda: byte_level(bos=True),
    "bytes of NFC": lambda: byte_level(normalizer=normalizers.NFC()),
    "fallback": with_fallback,
}


def write_rows(path: Path, seed: int, count: int = 150) -> TextConfig:
    """Texts of any length, many of a single word, some of them copies."""
    draw = random.Random(seed)
    lengths = [0, 1, 1, 1, 2, 3, 30]
    texts = [
        draw.choice(["", " ", "\n"]) + draw.choice(["", " "]).join(draw.choices(WORDS, k=draw.choice(lengths)))
        for _ in range(count)
    ]
    texts += [draw.choice(["the\u00a0", "a" * 60, "x" * 600, "\u200b", "e\u0301" * 3, "▁" * 9]) for _ in range(20)]
    texts += ["<|bos|>", "<|bos|> ", "<|bos|>the", "<|bos|><|bos|>", "<|bos|>the old river town", "the <|bos|>"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return TextConfig(source=str(path))


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("seed", range(3))
def test_documents_are_drawn_as_from_all_windows(
    name: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "LEAST", 0)
    tokenizer, context = TOKENIZERS[name](), 16
    config = write_rows(tmp_path / "rows.jsonl", seed)
    late = untokenized.untokenized(config, tokenizer, context)
    assert late is not None
    with monkeypatch.context() as patch:
        patch.setattr(documents, "read_texts", lambda _: None)
        whole = tokenize(load_corpus(config), tokenizer, context)
    assert late.present.tolist() == sorted(set(whole.documents.tolist()))
    assert late.notices == whole.notices
    assert late.first_copy == whole.first_copy
    assert late.n_documents == whole.n_documents == len(np.unique(whole.token_documents()))
    assert late.largest >= whole.largest
    assert late.whole().fingerprint() == whole.fingerprint()
    for order in range(3):
        tolerant, exact = in_random_order(late, order), in_random_order(whole, order)
        for tokens in (10, 200, 1, 10**9):
            a, b = tolerant.take(tokens), exact.take(tokens) if tolerant.left or exact.left else None
            assert b is not None
            for x, y in ((a, b), (tolerant.taken(), exact.taken())):
                assert x.fingerprint() == y.fingerprint()
                assert np.array_equal(x.token_documents(), y.token_documents())
                assert (tuple(x.document_ids), x.notices, x.first_copy) == (y.document_ids, y.notices, y.first_copy)
            assert tolerant.left == exact.left
            if not tolerant.left:
                break


def slow_order(windows: Any, seed: int, tokens: int) -> list[int]:
    """Windows of documents in random order until they have this many targets, from at least eight documents."""
    present = sorted(set(windows.documents.tolist()))
    chosen: list[int] = []
    for number, place in enumerate(np.random.default_rng([seed, 20240110]).permutation(len(present))):
        if number >= 8 and sum(int(windows.window(i)[1].sum()) for i in chosen) >= tokens:
            break
        chosen += [i for i, owner in enumerate(windows.documents) if owner == present[place]]
    return chosen


def test_the_order_is_that_of_a_slow_twin(tmp_path: Path) -> None:
    whole = tokenize(load_corpus(write_rows(tmp_path / "rows.jsonl", 5)), byte_level(), 16)
    for seed in range(3):
        for tokens in (1, 100, 400):
            drawn = in_random_order(whole, seed).take(tokens)
            assert drawn.fingerprint() == whole.select(slow_order(whole, seed, tokens)).fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: setattr(raw, "normalizer", normalizers.Lowercase()),
        lambda raw: setattr(raw, "normalizer", normalizers.Replace("a", "")),
        lambda raw: setattr(raw, "pre_tokenizer", pre_tokenizers.WhitespaceSplit()),
        lambda raw: setattr(raw, "model", models.BPE({"a": 0, "b": 1}, [])),
        lambda raw: setattr(raw, "model", models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")),
    ],
    ids=["lower case", "letters dropped", "words", "letters unknown", "words unknown"],
)
def test_a_tokenizer_that_may_make_one_token_of_much_reads_all(
    change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "LEAST", 0)
    raw = byte_level().backend_tokenizer
    change(raw)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    assert untokenized.untokenized(write_rows(tmp_path / "rows.jsonl", 0), tokenizer, 16) is None


@pytest.mark.full
def test_a_measurement_of_a_large_text_is_that_of_a_text_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_level()
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    tuned = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    config = write_rows(tmp_path / "rows.jsonl", 1, 300)

    def found() -> Any:
        how = {"tokenizer": tokenizer, "context": 16, "cache_dir": None, "noise_floor": True}
        return [measure(base, tuned, text=config, tolerance=at, seed=3, **how) for at in (0.05, 1e-9)]

    monkeypatch.setattr("forgetting.measuring.sampling.FIRST_TOKENS", 300)
    monkeypatch.setattr(large, "LEAST", 0)
    late = found()
    monkeypatch.setattr(large, "LEAST", 2**30)
    whole = found()
    for a, b in zip(late, whole, strict=True):
        assert a.means == b.means
        assert a.noise == b.noise
        assert a.notices == b.notices
        assert a.documents_in_text == b.documents_in_text
        assert a.windows.fingerprint() == b.windows.fingerprint()
    assert late[0].windows.n_predicted < late[1].windows.n_predicted

"""Texts that begin with the tokenizer's start token, as chat templates write them, do not get another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.data.test_chats import tokenizer_of
from tokenizers import processors

from forgetting.config.schema import DatasetConfig
from forgetting.data.documents import Document
from forgetting.data.prepared import Corpora
from forgetting.data.probes import Prompt, encode_prompts
from forgetting.data.tokenizing import tokenize
from forgetting.data.windows import Windows

TEXTS = ["<|bos|>one two", "three four", "<|bos|>", "five <|bos|>", "<|bos|><|bos|>six"]


def with_start(*, adds: bool = True) -> Any:
    tokenizer = tokenizer_of("<|bos|>")
    tokenizer.chat_template = None
    if adds:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            "<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.convert_tokens_to_ids("<|bos|>"))]
        )
    return tokenizer


def shown(windows: Windows, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(windows.window(i)[0]) for i in range(len(windows))]


def test_a_text_that_begins_with_the_start_token_has_it_once() -> None:
    tokenizer = with_start()
    documents = [Document(id=str(i), text=text) for i, text in enumerate(TEXTS)]
    windows = tokenize(documents, tokenizer, 16)
    assert shown(windows, tokenizer) == [
        "<|bos|>one two",
        "<|bos|>three four",
        "<|bos|>five <|bos|>",
        "<|bos|><|bos|>six",
    ]
    assert windows.notices == (
        "1 of 5 documents has no target within 16 tokens",
        "3 of 5 documents have the tokenizer's start token <|bos|> in the text already; it is not added again",
    )
    assert shown(tokenize(documents[:1], tokenizer, 8), tokenizer) == ["<|bos|>one two"]


def test_a_tokenizer_that_adds_none_changes_nothing() -> None:
    tokenizer = with_start(adds=False)
    windows = tokenize([Document(id=str(i), text=text) for i, text in enumerate(TEXTS)], tokenizer, 16)
    assert shown(windows, tokenizer) == [text for text in TEXTS if text != "<|bos|>"]
    assert windows.notices == ("1 of 5 documents has no target within 16 tokens",)


@pytest.mark.parametrize("prompt", ["<|bos|>one", "one"])
def test_joined_pairs_and_prompts_have_it_once(prompt: str) -> None:
    tokenizer = with_start()
    turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": " two"})
    windows = tokenize([Document(id="a", messages=turns, pair=True)], tokenizer, 32)
    ids, targets = windows.window(0)
    assert (tokenizer.decode(ids), tokenizer.decode(ids[targets])) == ("<|bos|>one two<|eos|>", " two<|eos|>")
    found, notices = encode_prompts([Prompt("a", "", turns[:1], "line 1")], tokenizer)
    assert tokenizer.decode(found[0]) == "<|bos|>one"
    told = "the tokenizer's start token <|bos|> in the text already; it is not added again"
    assert [f"1 of 1 document has {told}" in windows.notices, f"1 of 1 prompt has {told}" in notices] == [
        prompt.startswith("<")
    ] * 2


def test_fine_tuning_text_has_it_once(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(f'{{"text": "<|bos|>text {i}"}}\n' for i in range(8)))
    tokenizer = with_start()
    config = DatasetConfig(source=str(tmp_path / "train.jsonl"), heldout=0.25)
    for part in Corpora(tokenizer, 8, None).dataset(config):
        assert all(text.count("<|bos|>") == 1 for text in shown(part.windows, tokenizer))
        assert any("it is not added again" in notice for notice in part.windows.notices)

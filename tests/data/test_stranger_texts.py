"""Corpora with one fault or ambiguity: errors name it, and choices are reported."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from tests.data.test_chats import tokenizer_of

from forgetting.config.schema import TextConfig, TrainingConfig
from forgetting.data import readers
from forgetting.data.documents import Document, load_corpus
from forgetting.data.tokenizing import tokenize
from forgetting.errors import UsageError


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "text,text\na,b\n", "column 'text' occurs 2 times in the header"),
        ("a.csv", "text, text\na,b\n", "column 'text' occurs 2 times in the header"),
        ("a.csv", 'text\n"hello', 'a quote (") is opened'),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "b", "text": "c"}\n',
            "a.jsonl, line 2: 'text' occurs twice in one object",
        ),
        ("a.json", '[{"text": "b", "text": "c"}]', "a.json: 'text' occurs twice in one object"),
        ("a.json", '[\n{"text": "b}]', "not JSON: Unterminated string starting (line 2, column 10)"),
        ("a.jsonl", '{"text": 1}\n{"text": "b"}\n', "must be text, got int 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as caught:
        load_corpus(TextConfig(source=str(tmp_path / name)))
    assert says in str(caught.value)


def test_the_split_that_is_read_is_reported(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    parts = {name: Dataset.from_dict({"text": [name, f"{name} 2"]}) for name in ("train", "test")}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    corpus = load_corpus(TextConfig(source=str(tmp_path / "saved")))
    assert [document.text for document in corpus] == ["train", "train 2"]
    assert "saved: reading split train, not test; choose another one with split" in corpus.notices
    chosen = load_corpus(TextConfig(source=str(tmp_path / "saved"), split="test"))
    assert [document.text for document in chosen] == ["test", "test 2"]
    assert not any("split" in notice for notice in chosen.notices)


@pytest.mark.parametrize("pack", ["", ".gz"])
def test_a_word_of_millions_of_characters_is_refused(tmp_path: Path, monkeypatch: Any, pack: str) -> None:
    monkeypatch.setattr(readers, "MAX_WORD", 2**10)
    monkeypatch.setattr("forgetting.data.large.LEAST", 1)
    content = b"a b\n" * 1000 + b"a" * 2**12
    (tmp_path / f"a.txt{pack}").write_bytes(gzip.compress(content) if pack else content)
    with pytest.raises(UsageError, match="1,024 characters without a space"):
        load_corpus(TextConfig(source=str(tmp_path / f"a.txt{pack}")))
    with pytest.raises(UsageError, match="1,024 characters without a space"):
        tokenize([Document(id="a", text="a" * 2**12)], tokenizer_of(None), 8)


@pytest.mark.parametrize("template", ["hello", "{% for m in messages %}{{ m['role'] }} {% endfor %}"])
def test_a_template_without_answers_is_reported(template: str) -> None:
    messages = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    with pytest.raises(UsageError, match="does not render the assistant's answers"):
        tokenize([Document(id="d", messages=messages)], tokenizer_of(template), 100)


def test_the_default_warm_up_follows_few_steps() -> None:
    found = [TrainingConfig(steps=steps).warmup_steps for steps in (1, 6, 10, 11, 260)]
    assert found == [0, 0, 1, 10, 10]
    with pytest.raises(ValueError, match="warmup_steps 10 must be fewer than steps 6"):
        TrainingConfig(steps=6, warmup_steps=10)


def test_errors_about_given_texts_say_what_to_give(tmp_path: Path) -> None:
    from forgetting.measuring.reading import text_source

    for text in ("just some text that was pasted", "a line\nanother", "word " * 1000):
        with pytest.raises(UsageError, match=r"to measure a text itself, give a list in Python: text=\[text\]"):
            text_source(text)
    with pytest.raises(UsageError, match="text: an empty list; give at least one text"):
        text_source([])
    assert text_source("my folder/a b.txt") == TextConfig(source="my folder/a b.txt")


def test_a_conversation_that_a_template_refuses_is_named_by_file_and_row(tmp_path: Path) -> None:
    row = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    (tmp_path / "c.jsonl").write_text(row * 2)
    tokenizer = tokenizer_of("{{ raise_exception('Conversation roles must alternate') }}")
    with pytest.raises(UsageError, match=r"c\.jsonl: row 1: the model's chat template refuses this conversation: Conv"):
        tokenize(load_corpus(TextConfig(source=str(tmp_path / "c.jsonl"))), tokenizer, 64)

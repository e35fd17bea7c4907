"""From corpora to windows: formats, documents, held-out split, chat masks, and errors that name file and row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.config.schema import TextConfig
from forgetting.data.documents import Document, load_corpus, split_heldout
from forgetting.data.passages import shared_passages
from forgetting.data.tokenizing import tokenize
from forgetting.data.windows import Windows
from forgetting.errors import ForgettingError, UsageError


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def write(folder: Path, name: str, text: str) -> TextConfig:
    (folder / name).write_text(text, encoding="utf-8")
    return TextConfig(source=str(folder / name))


def test_txt_is_cut_at_wikitext_titles_and_not_at_sections(tmp_path: Path) -> None:
    text = "\n = One = \n\n a b \n = = Part = = \n c \n\n = Two (2) = \n\n d \n"
    documents = load_corpus(write(tmp_path, "w.txt", text))
    assert [d.id for d in documents] == ["One", "Two (2)"]
    assert "Part" in documents[0].text
    assert "".join(d.text for d in documents).replace("\n", "") == text.replace("\n", "")


def test_txt_without_titles_becomes_sections_of_whole_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {i} " + "word " * 100 for i in range(40)]
    documents = load_corpus(write(tmp_path, "w.txt", "\n\n".join(paragraphs)))
    assert len(documents) > 3
    assert "\n\n".join(d.text for d in documents) == "\n\n".join(paragraphs)
    assert all(len(d.text) >= 4000 - 2 for d in documents[:-1])


def test_documents_option_decides_what_a_document_is(tmp_path: Path) -> None:
    config = write(tmp_path, "w.txt", "one one\n\ntwo two\n\n\nthree")
    counts = {
        mode: len(load_corpus(config.model_copy(update={"documents": mode})))
        for mode in ("auto", "paragraphs", "sections", "rows")
    }
    assert counts == {"auto": 1, "paragraphs": 3, "sections": 1, "rows": 1}
    with pytest.raises(UsageError, match="no ` = Title = ` line"):
        load_corpus(config.model_copy(update={"documents": "wikitext"}))


def test_jsonl_and_parquet_give_the_same_documents(tmp_path: Path) -> None:
    rows = [{"id": "x", "text": "a b"}, {"id": "x", "text": "c"}, {"id": "y", "text": "  "}]
    jsonl = write(tmp_path, "r.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pd.DataFrame(rows).to_parquet(tmp_path / "r.parquet")
    documents = load_corpus(jsonl)
    assert [(d.id, d.text) for d in documents] == [("x", "a b"), ("x#2", "c")]
    again = [{"id": name, "text": "a"} for name in ("x", "x", "x#2", "x#2", "x")]
    jsonl = write(tmp_path, "again.jsonl", "".join(json.dumps(row) + "\n" for row in again))
    assert [d.id for d in load_corpus(jsonl)] == ["x", "x#2", "x#2#2", "x#2#3", "x#3"]
    assert load_corpus(TextConfig(source=str(tmp_path / "r.parquet"))).documents == documents.documents
    assert documents.notices == ("r.jsonl: 1 of 3 rows is empty and left out",)
    assert len(load_corpus(jsonl.model_copy(update={"max_documents": 1}))) == 1


def test_wikitext_rows_of_single_lines_are_joined_into_articles(tmp_path: Path) -> None:
    lines = ["\n", " = One = \n", "\n", " a b \n", " = Two = \n", " c \n"]
    documents = load_corpus(write(tmp_path, "r.jsonl", "".join(json.dumps({"text": line}) + "\n" for line in lines)))
    assert [d.id for d in documents] == ["One", "Two"]


def test_parquet_messages_are_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    pd.DataFrame({"messages": [turns, turns]}).to_parquet(tmp_path / "c.parquet")
    assert load_corpus(TextConfig(source=str(tmp_path / "c.parquet")))[0].messages == tuple(turns)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "a.jsonl, line 2: each line must be a JSON object, got list"),
        ("a.jsonl", '{"body": "a", "title": "b"}\n', "columns: body, title"),
        ("a.jsonl", '{"text": "a"}\n{"text": 7}\n', "a.jsonl: row 2: column 'text' must be text, got int 7"),
        ("a.jsonl", '{"text": " "}\n', "a.jsonl: contains no text"),
        ("a.jsonl", "", "a.jsonl: empty"),
        ("a.txt", " \n", "a.txt: empty"),
        ("a.xlsx", "x", "cannot read '.xlsx' files; allowed: .txt, .md, .jsonl"),
        ("a.parquet", "no", "not a Parquet file"),
        ("a.jsonl", '{"messages": "hi"}\n', "row 1: column 'messages' must be a list"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}\n', "each message needs the texts `role` and `content`"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}\n', "no assistant message to learn from"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_corpus(write(tmp_path, name, content))
    assert message in str(caught.value)


def test_missing_files_folders_and_bytes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_corpus(TextConfig(source=str(tmp_path / "none.txt")))
    with pytest.raises(UsageError, match=r"this folder has no file of a known kind; known: .txt"):
        load_corpus(TextConfig(source=str(tmp_path)))
    (tmp_path / "b.txt").write_bytes(b"ok \xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        load_corpus(TextConfig(source=str(tmp_path / "b.txt")))


def test_hub_ids_go_through_datasets_and_offline_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ForgettingError, match="some/data-set"):
        load_corpus(TextConfig(source="some/data-set"))


def test_heldout_shares_no_document_not_even_a_copy() -> None:
    documents = [Document(id=str(i), text=f"text {i % 50}") for i in range(100)]
    train, heldout = split_heldout(documents, 0.2)
    assert not {d.text for d in train} & {d.text for d in heldout}
    assert len({d.text for d in heldout}) == 10
    assert len(train) + len(heldout) == 100
    shuffled = split_heldout(documents[::-1], 0.2)
    assert {d.id for d in shuffled[1]} == {d.id for d in heldout}


@pytest.mark.parametrize("share", [0.8, 0.99])
def test_a_large_share_does_not_hold_out_all_documents(share: float) -> None:
    train, heldout = split_heldout([Document(id=str(i), text=f"text {i}") for i in range(4)], share)
    assert (len(train), len(heldout)) == (1, 3)


def test_too_few_documents_to_hold_out_is_an_error() -> None:
    with pytest.raises(UsageError, match="1 distinct documents; at least 4"):
        split_heldout([Document(id=str(i), text="same") for i in range(9)], 0.1)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    context=st.integers(2, 12),
)
def test_windows_cover_each_document_once(lengths: list[int], context: int) -> None:
    documents = [Document(id=str(i), text=" ".join(f"w{i}x{j}" for j in range(n))) for i, n in enumerate(lengths)]
    if sum(n - (n % context == 1) for n in lengths) < context:
        return
    words = [word for d in documents for word in d.text.split()]
    ids = {word: number for number, word in enumerate(words)}

    def fake(text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ids[word] for word in text.split()]}

    windows = tokenize(documents, fake, context)  # type: ignore[arg-type]
    assert windows.lengths.max() <= context
    for owner, document in enumerate(documents):
        parts = [windows.window(w)[0] for w in np.flatnonzero(windows.documents == owner)]
        tokens = [ids[word] for word in document.text.split()]
        got = [int(t) for window in parts for t in window]
        assert got == tokens[: len(got)]
        assert len(tokens) - len(got) <= 1  # a last window of one token has nothing to predict
    for w in range(len(windows)):
        mask = windows.window(w)[1]
        assert not mask[0]
        assert mask[1:].all()
    assert windows.n_predicted == len(windows.token_documents())


def test_chat_loss_is_on_the_answers_and_their_end_mark(tokenizer) -> None:
    turns = ("user", "the old river"), ("assistant", "bread"), ("user", "came"), ("assistant", "iron bridge")
    document = Document(id="c", messages=tuple({"role": r, "content": t} for r, t in turns))
    windows = tokenize([document], tokenizer, 64)
    ids, predicted = windows.window(0)
    learned = tokenizer.convert_ids_to_tokens(ids[predicted].tolist())
    assert learned == ["bread", "<|end|>", "iron", "bridge", "<|end|>"]


def test_long_conversations_are_cut_and_counted(tokenizer) -> None:
    def chat(question: str, answer: str) -> Document:
        turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        return Document(id=question[:9], messages=turns)

    windows = tokenize([chat("the old", "bread " * 30), chat("river " * 30, "iron")], tokenizer, 16)
    assert len(windows) == 1
    assert windows.lengths.tolist() == [16]
    assert windows.notices == (
        "2 of 2 conversations were cut at 16 tokens",
        "1 of 2 documents has no target within 16 tokens",
    )


def test_texts_shorter_than_a_window_have_one_window_each(tokenizer) -> None:
    documents = [Document(id=str(i), text=text) for i, text in enumerate(["the old river", "bread", "iron bridge"])]
    windows = tokenize(documents, tokenizer, 64)
    assert windows.lengths.tolist() == [3, 2]
    assert windows.documents.tolist() == [0, 2]
    with pytest.raises(UsageError, match="the text has 1 document and none is two tokens long"):
        tokenize(documents[1:2], tokenizer, 64)


def test_a_tokenizer_without_chat_template_is_refused(tokenizer) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    turns = ({"role": "user", "content": "the"}, {"role": "assistant", "content": "old"})
    with pytest.raises(UsageError, match="has no chat template"):
        tokenize([Document(id="a", messages=turns)], bare, 64)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer) -> None:
    import copy

    rewriting = copy.deepcopy(tokenizer)
    rewriting.chat_template = "{{ messages|length }} {% for m in messages %}{{ m['content'] }} {% endfor %}"
    turns = ({"role": "user", "content": "the"}, {"role": "assistant", "content": "old"})
    with pytest.raises(UsageError, match="document 'a': the chat template rewrites earlier turns"):
        tokenize([Document(id="a", messages=turns)], rewriting, 64)


def test_sampling_takes_windows_in_a_seeded_order(tokenizer) -> None:
    documents = [Document(id=str(i), text="the old river town guild baker smith north " * 4) for i in range(20)]
    windows = tokenize(documents, tokenizer, 16)
    part = windows.sample(100)
    assert part.fingerprint() == windows.sample(100).fingerprint()
    assert part.fingerprint() != windows.sample(100, seed=1).fingerprint()
    assert 100 <= part.n_predicted < 100 + 16
    assert np.all(np.diff(part.documents) >= 0)
    assert isinstance(windows.sample(None), Windows)
    assert windows.sample(10**9) is windows


def test_a_sample_of_one_long_document_first_still_has_two(tokenizer) -> None:
    long, short = "the old river town guild baker smith north " * 200, "the old river"
    windows = tokenize([Document(id="long", text=long), Document(id="short", text=short)], tokenizer, 16)
    assert {len(set(windows.sample(1, seed=seed).documents.tolist())) for seed in range(5)} == {2}
    texts = {"long": long, "copy": f" {long} ", "short": short}
    copied = tokenize([Document(id=name, text=text) for name, text in texts.items()], tokenizer, 16)
    assert {copied.sample(1, seed=seed).n_documents for seed in range(5)} == {2}


def test_a_mean_over_a_sample_stands_for_the_whole_text() -> None:
    """Documents of unequal length, with values that depend on it: whole or in windows, the mean must be unbiased."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, 60) * 10
    documents = np.repeat(np.arange(60, dtype=np.int32), lengths // 10)
    windows = Windows(
        input_ids=np.arange(lengths.sum(), dtype=np.int32),
        predicted=np.tile(np.arange(10) > 0, len(documents)),
        offsets=np.arange(0, lengths.sum() + 1, 10, dtype=np.int64),
        documents=documents,
        document_ids=tuple(map(str, range(60))),
        notices=(),
    )
    value = np.repeat(lengths, lengths) / 100 + rng.normal(0, 1, lengths.sum())  # by token id
    samples = [windows.sample(900, seed=seed) for seed in range(400)]
    means = np.array([value[sample.input_ids[sample.predicted]].mean() for sample in samples])
    truth = value[windows.input_ids[windows.predicted]].mean()
    assert abs(means.mean() - truth) < 3 * means.std() / len(means) ** 0.5
    assert min(len(set(sample.documents.tolist())) for sample in samples) > 35  # whole documents would be 15 or so


def test_shared_passages_are_whole_documents_and_long_lines() -> None:
    long = "a line that is longer than eighty characters " * 2
    general = [Document(id="a", text=f"one\n{long}\ntwo"), Document(id="b", text="short"), Document(id="c", text="x")]
    chat = ({"role": "user", "content": "q"}, {"role": "assistant", "content": f" {long}"})
    assert shared_passages(general, [Document(id="1", messages=chat)]) == [long.strip()]
    assert shared_passages(general, [Document(id="1", text="short"), Document(id="2", text="two")]) == ["short"]
    assert shared_passages(general, [Document(id="1", text="else")]) == []
    system = {"role": "system", "content": long}
    assert shared_passages(general, [Document(id="1", messages=(system, *chat[:1]))]) == []

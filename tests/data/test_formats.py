"""Formats of rows, recognised by their columns and reported, and the conversations read from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from forgetting.config.schema import TextConfig
from forgetting.data.documents import Corpus, Document, load_corpus, split_heldout
from forgetting.errors import UsageError

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
S = {"role": "system", "content": "s"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"q": "x"}}}


def load(folder: Path, rows: list[Any], **fields: Any) -> Corpus:
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_corpus(TextConfig.model_validate({"source": str(folder / "r.jsonl"), **fields}))


@pytest.mark.parametrize(
    ("name", "row", "messages"),
    [
        ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [Q, A]),
        ("sharegpt", {"conversations": [{"from": "Human", "value": "q"}, {"from": "GPT", "value": "a"}]}, [Q, A]),
        ("sharegpt", {"conversations": [Q, A], "system": "s"}, [S, Q, A]),
        ("alpaca", {"instruction": "q", "input": "", "output": "a"}, [Q, A]),
        ("alpaca", {"instruction": "q", "input": "i", "output": "a"}, [{"role": "user", "content": "q\ni"}, A]),
        ("alpaca", {"instruction": "q", "output": "a", "system": "s", "history": [["q", "a"]]}, [S, Q, A, Q, A]),
        ("dolly", {"instruction": "q", "context": "i", "response": "a"}, [{"role": "user", "content": "q\ni"}, A]),
        ("openorca", {"id": "1", "system_prompt": "s", "question": "q", "response": "a"}, [S, Q, A]),
        ("openorca", {"id": "1", "system_prompt": "", "question": "q", "response": "a"}, [Q, A]),
        ("qa", {"question": "q", "answer": "a"}, [Q, A]),
        ("qa", {"prompt": "q", "response": "a"}, [Q, A]),
        ("dpo", {"prompt": "q", "chosen": "a", "rejected": "b"}, [Q, A]),
        ("dpo", {"prompt": "q", "chosen": [Q, A], "rejected": [Q, S]}, [Q, A]),
        ("dpo", {"prompt": [S, Q], "chosen": [A], "rejected": [A]}, [S, Q, A]),
        ("dpo", {"chosen": [Q, A], "rejected": [Q, A]}, [Q, A]),
    ],
)
def test_formats_are_recognised_by_their_columns(
    tmp_path: Path, name: str, row: dict[str, Any], messages: list[Any]
) -> None:
    corpus = load(tmp_path, [row])
    assert list(corpus[0].messages) == messages
    assert corpus.notices[0].startswith(f"r.jsonl: read as {name} from columns ")
    assert load(tmp_path, [row], format=name).documents == corpus.documents


def test_unused_columns_are_reported(tmp_path: Path) -> None:
    corpus = load(tmp_path, [{"question": "q", "answer": "a", "context": "c"}])
    assert corpus.notices == ("r.jsonl: read as qa from columns question, answer; not used: context",)
    alpaca = {"instruction": "q", "output": "a", "text": "### q: a"}
    assert load(tmp_path, [alpaca])[0].text == "### q: a"
    notice = load(tmp_path, [alpaca]).notices[0]
    assert "could also be read as alpaca (set `format`, as in --text-field format=alpaca)" in notice
    assert load(tmp_path, [{"text": "t", "label": "x"}] * 2).notices == ()
    assert load(tmp_path, [{"messages": [Q, A], "source": "x"}]).notices == ()
    assert load(tmp_path, [{"dialog": [Q, A]}], messages_column="dialog").notices == ()
    both = [{"messages": [Q, A], "text": "t"}] * 2
    assert load(tmp_path, both).notices == (
        "r.jsonl: read as chat from columns messages; not used: text; could also be read as text (set `format`, as in "
        "--text-field format=text)",
    )
    assert load(tmp_path, both, format="chat").notices == ()
    assert load(tmp_path, both, format="text")[0].text == "t"
    pair = {"prompt": "q", "completion": "a", "text": "q a"}
    assert "read as completion from columns prompt, completion; not used: text" in load(tmp_path, [pair]).notices[0]


def test_a_conversation_under_another_name_is_read(tmp_path: Path) -> None:
    row = {"dialog": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    assert list(load(tmp_path, [row], messages_column="dialog")[0].messages) == [Q, A]


def test_every_field_of_a_message_stays(tmp_path: Path) -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    thinks = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    tool = {"role": "tool", "content": "r", "tool_call_id": "1", "name": "look"}
    tools = [{"type": "function", "function": {"name": "look"}}]
    document = load(tmp_path, [{"messages": [Q, calls, tool, thinks], "tools": json.dumps(tools)}])[0]
    assert list(document.messages) == [Q, calls, tool, thinks]
    assert list(document.tools) == tools
    plain = Document(id="x", messages=(Q, {"role": "assistant", "content": ""}, {**tool}, A))
    assert document.content_hash() != plain.content_hash()


def test_tool_calls_in_sharegpts_format(tmp_path: Path) -> None:
    call = {"from": "function_call", "value": json.dumps(CALL["function"])}
    row = {"conversations": [{"from": "human", "value": "q"}, call, {"from": "observation", "value": "r"}]}
    messages = load(tmp_path, [row])[0].messages
    assert messages[1] == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert messages[2] == {"role": "tool", "content": "r"}


def test_parquet_leaves_no_nulls_in_messages(tmp_path: Path) -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    pd.DataFrame({"messages": [[Q, calls, A]]}).to_parquet(tmp_path / "r.parquet")
    read = load_corpus(TextConfig(source=str(tmp_path / "r.parquet")))[0].messages
    assert [dict(message) for message in read] == [Q, calls, A]


def test_parts_of_text_are_joined_and_images_refused(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    row = {"messages": [{"role": "user", "content": parts}, A]}
    assert load(tmp_path, [row])[0].messages[0]["content"] == "one two"
    said = [{"type": "output_text", "text": "a", "annotations": []}]  # OpenAI's Responses API
    asked = [{"type": "input_text", "text": "one "}, {"type": "text", "text": "two"}]
    assert load(tmp_path, [{"messages": [{**Q, "content": asked}, {**A, "content": said}]}])[0].messages == (
        {"role": "user", "content": "one two"},
        A,
    )
    row["messages"][0]["content"] = [{"type": "input_image", "image_url": "x", "text": "x"}, *parts]  # type: ignore[index]
    with pytest.raises(
        UsageError, match="message 1 has a part of type 'input_image'; only text, input_text, output_te"
    ):
        load(tmp_path, [row])
    row["messages"][0]["content"] = [{"type": "image"}, *parts]  # type: ignore[index]
    with pytest.raises(UsageError, match="row 1: column 'messages': message 1 has a part of type 'image'"):
        load(tmp_path, [row])
    with pytest.raises(UsageError, match="row 1: column 'images' is not empty"):
        load(tmp_path, [{"messages": [Q, A], "images": ["a.png"]}])
    assert len(load(tmp_path, [{"messages": [Q, A], "images": []}])) == 1


def test_conversations_without_an_answer_are_counted(tmp_path: Path) -> None:
    empty = {"role": "assistant", "content": " "}
    corpus = load(tmp_path, [{"messages": [Q, A]}, {"messages": [Q, empty]}, {"messages": [Q]}, {"messages": [Q, A]}])
    assert len(corpus) == 2
    assert corpus.notices == (
        "r.jsonl: left out 1 of 4 conversations, with an empty answer",
        "r.jsonl: left out 1 of 4 conversations, with no assistant message",
    )
    pairs = [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": ""}, {"prompt": "p", "completion": None}]
    assert load(tmp_path, pairs).notices == ("r.jsonl: left out 2 of 3 conversations, with an empty answer",)


@pytest.mark.parametrize("value", [[], None, "", " ", "[]"], ids=repr)
def test_rows_without_messages_are_counted(tmp_path: Path, value: Any) -> None:
    for rows, names in (
        ([{"messages": [Q, A]}, {"messages": value}], "'messages'"),
        ([{"conversations": [Q, A]}, {"conversations": value}], "'conversations'"),
        (
            [{"question": "q", "answer": "a"}, {"question": None, "answer": None}],
            "'answer' and 'ques",
        ),
        ([{"prompt": [Q], "chosen": [A]}, {"prompt": [Q], "chosen": None}], "'chosen'"),
    ):
        corpus = load(tmp_path, rows)
        assert [document.id for document in corpus] == ["row-0"]
        assert f"r.jsonl: left out 1 of 2 conversations, with nothing in {names}" in "\n".join(corpus.notices)
    with pytest.raises(UsageError, match="row 2: column 'messages' must be a list"):
        load(tmp_path, [{"messages": [Q, A]}, {"text": "no messages here"}])
    with pytest.raises(UsageError, match=r"r.jsonl: contains no text: all 2 rows are empty"):
        load(tmp_path, [{"messages": value}] * 2)


@pytest.mark.parametrize(
    "row", [{"prompt": "q", "completion": "a", "label": True}, {"messages": [Q, A], "kto_tag": True}], ids=["trl", "lf"]
)
def test_rejected_answers_are_left_out_and_counted(tmp_path: Path, row: dict[str, Any]) -> None:
    name = next(name for name, value in row.items() if value is True)
    corpus = load(tmp_path, [row, {**row, name: False}, {**row, name: "no flag"}])
    assert len(corpus) == 2
    assert corpus.notices == (
        "r.jsonl: left out 1 of 3 conversations, with the label false (an answer that was rejected)",
    )
    with pytest.raises(UsageError, match="no answer with the label true in 1 row"):
        load(tmp_path, [{**row, name: False}])


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}], ids=str)
def test_turns_marked_as_not_trained_on_are_context(tmp_path: Path, mark: dict[str, Any]) -> None:
    corpus = load(tmp_path, [{"messages": [Q, {**A, **mark}, Q, A]}, {"messages": [Q, {**A, **mark}]}])
    assert len(corpus) == 1
    assert corpus[0].targets() == [3]
    assert corpus.notices == (
        "r.jsonl: left out 1 of 2 conversations, with no assistant message",
        "r.jsonl: 2 assistant messages with weight 0 or train false: part of the conversation, but not learned or "
        "measured",
    )
    learned = [{"messages": [Q, {**A, "weight": 1}, Q, {**A, "train": True}]}]
    assert load(tmp_path, learned)[0].targets() == [1, 3]


def test_only_the_completion_of_prompt_and_completion_messages_is_trained_on(tmp_path: Path) -> None:
    document = load(tmp_path, [{"prompt": [Q, A, Q], "completion": [A]}])[0]
    assert (list(document.messages), document.given) == ([Q, A, Q, A], 3)


def test_a_csv_cell_can_hold_a_conversation(tmp_path: Path) -> None:
    pd.DataFrame({"messages": [json.dumps([Q, A])]}).to_csv(tmp_path / "r.csv", index=False)
    assert list(load_corpus(TextConfig(source=str(tmp_path / "r.csv")))[0].messages) == [Q, A]


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"body": "x"}, {}, "columns: body. Set which to read with text_column"),
        ({"body": "x"}, {"format": "alpaca"}, "no column 'instruction' and 'output' for format alpaca; columns: body"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, {}, "message 1 is from 'robot'; allowed: human, user"),
        ({"chosen": "a"}, {}, "column 'chosen' is str 'a', but there is no prompt in prompt"),
        ({"question": None, "answer": "a"}, {}, "row 1: column 'question' must be text, got null"),
        ({"messages": [Q, A], "tools": "x"}, {}, "column 'tools': not JSON"),
        ({"messages": [Q, A], "tools": {"a": 1}}, {}, "column 'tools' must be a list of objects, got dict"),
        (
            {"instruction": "q", "output": "a", "history": [1]},
            {},
            "'history' must be a list of [prompt, answer], got 1",
        ),
        ({"messages": [Q, {"role": "assistant", "content": None}]}, {}, "message 2: each message needs the texts"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, row: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, [row], **fields)
    assert message in str(caught.value)


def test_hashes_of_plain_conversations_stay_as_they_were() -> None:
    """They decide which documents are held out: stored studies resume with the same ones."""
    assert Document(id="1", text="old river").content_hash().startswith("af499e3a")
    assert Document(id="1", messages=(Q, A)).content_hash().startswith("5afb64e4")


def test_copies_that_differ_in_white_space_are_not_split() -> None:
    documents = [Document(id=str(i), text=f"text {i // 2}" + "\n" * (i % 2)) for i in range(40)]
    train, heldout = split_heldout(documents, 0.2)
    assert not {d.text.strip() for d in train} & {d.text.strip() for d in heldout}
    assert len(heldout) == 8

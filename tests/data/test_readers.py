"""Real files: line breaks, byte-order marks, compression, JSON, CSV, folders. No text is lost or changed."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from forgetting import files
from forgetting.config.schema import TextConfig
from forgetting.data.documents import load_corpus
from forgetting.errors import UsageError

WIKITEXT = "\n = One = \n\n a b \n = = Part = = \n c \n\n = Two = \n\n d \n"
ROWS = [{"id": "x", "text": 'a, "b"\nc'}, {"id": "y", "text": "NA"}, {"id": "z", "text": "wörter 字 🙂 \u0a0d"}]


def texts(path: Path, **fields: object) -> list[tuple[str, str]]:
    return [(d.id, d.text) for d in load_corpus(TextConfig.model_validate({"source": str(path), **fields}))]


ENCODINGS = {"utf-8": b"", "utf-8-sig": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
"""Python's encodings, with the mark that Python does not write by itself."""


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_is_the_same_whatever_its_line_breaks_and_encoding(tmp_path: Path, end: str, encoding: str) -> None:
    plain, other = tmp_path / "plain.txt", tmp_path / "other.txt"
    plain.write_bytes(WIKITEXT.encode())
    other.write_bytes(ENCODINGS[encoding] + WIKITEXT.lstrip("\n").replace("\n", end).encode(encoding))
    assert [name for name, _ in texts(other)] == ["One", "Two"]
    assert texts(other)[1] == texts(plain)[1]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".json"])
def test_rows_are_the_same_whatever_their_line_breaks_and_encoding(tmp_path: Path, suffix: str) -> None:
    content = {
        ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        ".json": json.dumps(ROWS, indent=1),
        ".csv": pd.DataFrame(ROWS).to_csv(index=False),
        ".tsv": pd.DataFrame(ROWS).to_csv(index=False, sep="\t"),
    }[suffix]
    path = tmp_path / f"r{suffix}"
    rows = [(row["id"], row["text"]) for row in ROWS]
    for encoding, mark in ENCODINGS.items():
        path.write_bytes(mark + content.encode(encoding))
        assert texts(path) == rows
        if suffix in (".jsonl", ".json"):
            path.write_bytes(mark + content.replace("\n", "\r\n").encode(encoding))
            assert texts(path) == rows


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("pack", [".gz", ".zst"])
def test_packed_files_are_unpacked(tmp_path: Path, name: str, pack: str) -> None:
    content = {
        "a.txt": WIKITEXT,
        "a.jsonl": '{"text": "one"}\n{"text": "two"}\n',
        "a.json": '[{"text": "one"}, {"text": "two"}]',
        "a.csv": "text\none\ntwo\n",
    }[name].encode()
    (tmp_path / name).write_bytes(content)
    packed = gzip.compress(content) if pack == ".gz" else pa.Codec("zstd").compress(content, asbytes=True)
    (tmp_path / (name + pack)).write_bytes(packed)
    assert texts(tmp_path / (name + pack)) == texts(tmp_path / name)
    (tmp_path / (name + pack)).write_bytes(packed[:-3])
    with pytest.raises(UsageError, match=rf"a\.\w+\{pack}: (damaged|cannot be read)"):
        load_corpus(TextConfig(source=str(tmp_path / (name + pack))))


def test_a_packed_bomb_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_TEXT", "MAX_FILE"):
        monkeypatch.setattr(files, name, 10_000)
    for name in ("a.txt.gz", "a.jsonl.gz", "a.csv.gz", "a.json.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"\n" * 100_000))
        with pytest.raises(UsageError, match="more than 10,000 bytes"):
            load_corpus(TextConfig(source=str(tmp_path / name)))


def test_json_comes_in_several_shapes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for value in (
        [{"text": "one"}, {"text": "two"}],
        ["one", "two"],
        {"version": 1, "data": [{"text": "one"}, {"text": "two"}]},
    ):
        path.write_text(json.dumps(value))
        assert [text for _, text in texts(path)] == ["one", "two"]
        path.with_suffix(".jsonl").write_text("\ufeff" + json.dumps(value, indent=1))
        if isinstance(value, list):
            assert [text for _, text in texts(path.with_suffix(".jsonl"))] == ["one", "two"]
    path.write_text('{"text": "one"}\n{"text": "two"}\n')  # JSON Lines
    assert [text for _, text in texts(path)] == ["one", "two"]
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}))
    assert len(load_corpus(TextConfig(source=str(path)))[0].messages) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"a": [], "b": []}', "an object with 2 lists (a, b); give an array of objects"),
        ("a.json", "[1]", "entry 1 of the array must be an object or a string, got int"),
        ("a.json", "7", "needs an array of objects, got int"),
        ("a.json", '[{"text": "a"}, ', "a.json: not JSON"),
        ("a.csv", "text\nhello, world\n", "rows have more fields than the header; texts that contain ',' need quotes"),
        ("a.csv", "text\nhello\nhello, world\n", "cannot be read as a table"),
        ("a.csv", 'text\n"hello', "cannot be read as a table"),
        ("a.csv", "body;id\nx;1\n", "columns: body, id"),
        ("a.csv", "text\n", "a.csv: empty"),
        ("a.xlsx", "x", "cannot read '.xlsx' files; allowed: .txt"),
        ("a.gz", "x", "cannot read 'no suffix' files"),
        ("a.zip", "x", "cannot read '.zip' files"),
    ],
)
def test_what_cannot_be_read_is_one_error(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as caught:
        load_corpus(TextConfig(source=str(tmp_path / name)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv", ".txt.gz"])
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16-le", "it looks like UTF-16 without a byte order mark; convert it to UTF-8"),
        ("utf-16-be", "it looks like UTF-16 without a byte order mark; convert it to UTF-8"),
        ("utf-32", "text in UTF-32; convert it to UTF-8"),
    ],
)
def test_an_encoding_that_would_be_measured_as_other_text_is_refused(
    suffix: str, encoding: str, message: str, tmp_path: Path
) -> None:
    content = json.dumps([{"text": "wörter 字"}, {"text": "two words"}], ensure_ascii=False).encode(encoding)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(UsageError) as caught:
        load_corpus(TextConfig(source=str(path)))
    assert str(caught.value) == f"{path}: {message}"


def test_damaged_utf_16_is_one_error_and_a_null_character_in_utf_8_is_text(tmp_path: Path) -> None:
    for end in (b"a", "\ud83d".encode("utf-16-le", "surrogatepass") + b"a\0"):
        (tmp_path / "a.txt").write_bytes("two words".encode("utf-16") + end)
        with pytest.raises(UsageError, match=r"a\.txt: damaged UTF-16 text"):
            load_corpus(TextConfig(source=str(tmp_path / "a.txt")))
    (tmp_path / "a.txt").write_bytes(b"a null: \0 in the middle of a text")
    assert "\0" in texts(tmp_path / "a.txt")[0][1]


def test_arrow_comes_in_two_forms(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.table({"text": ["one", None, "two"]})
    for name, opened in (("stream.arrow", pa.ipc.new_stream), ("file.arrow", pa.ipc.new_file)):
        with opened(tmp_path / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        assert [text for _, text in texts(tmp_path / name)] == ["one", "two"]
    (tmp_path / "file.arrow").write_bytes((tmp_path / "file.arrow").read_bytes()[:-40])
    for name, content in (("file.arrow", None), ("a.feather", b"no"), ("a.arrow.gz", b"no")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=r"not an Arrow file|unpack it first"):
            texts(tmp_path / name)


def test_spaces_around_the_names_of_columns_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id, text \n1,one\n2,two\n")
    assert [text for _, text in texts(tmp_path / "a.csv")] == ["one", "two"]


def test_a_folder_of_texts_is_a_document_a_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("bee\n")
    (tmp_path / "deep" / "a.txt").write_bytes(b"ay\r\nay")
    (tmp_path / "README.md").write_text("read me")
    (tmp_path / ".hidden.txt").write_text("no")
    corpus = load_corpus(TextConfig(source=str(tmp_path)))
    assert [(d.id, d.text) for d in corpus] == [("b.txt", "bee\n"), ("deep/a.txt", "ay\nay")]
    assert corpus.notices[0].endswith(": read 2 files (b.txt, a.txt), skipped 1 (README.md)")


def test_a_folder_of_rows_is_joined(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "one"}\n')
    pd.DataFrame({"text": ["two", "three"]}).to_parquet(tmp_path / "two.parquet")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert [text for _, text in texts(tmp_path)] == ["one", "two", "three"]


def test_splits_of_a_folder_are_not_mixed(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    with pytest.raises(UsageError, match=r"files of several splits \(test, train\); choose one with split"):
        load_corpus(TextConfig(source=str(tmp_path)))
    assert [text for _, text in texts(tmp_path, split="test")] == ["test"]
    with pytest.raises(UsageError, match="no file of split 'dev'; splits: test, train"):
        load_corpus(TextConfig(source=str(tmp_path), split="dev"))


def test_a_folder_that_datasets_saved_is_read(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_dict({"text": ["one", "two"]})
    data.save_to_disk(str(tmp_path / "single"))
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(str(tmp_path / "both"))
    assert [text for _, text in texts(tmp_path / "single")] == ["one", "two"]
    assert [text for _, text in texts(tmp_path / "both", split="test")] == ["two"]
    with pytest.raises(UsageError, match="no split 'dev'; splits: train, test"):
        load_corpus(TextConfig(source=str(tmp_path / "both"), split="dev"))


def test_one_title_among_rows_does_not_join_them(tmp_path: Path) -> None:
    rows = ["A document of its own.", " = Title = ", "Another one.\nWith two lines.", "A third."]
    path = tmp_path / "r.jsonl"
    for some in (rows, [rows[0], rows[1], rows[3]], [f"{row} = x" for row in rows]):
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in some))
        assert [text for _, text in texts(path)] == some


def test_text_before_the_first_title_stays(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("A preface.\n" + WIKITEXT)
    assert "".join(text for _, text in texts(tmp_path / "w.txt")) == "A preface.\n" + WIKITEXT
    (tmp_path / "w.txt").write_text("A story.\n\n = Title = \n\nIt goes on.\n")
    assert [name for name, _ in texts(tmp_path / "w.txt")] == ["section-0"]


def test_how_a_text_was_split_into_documents_is_reported(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text(WIKITEXT)
    assert load_corpus(TextConfig(source=str(tmp_path / "w.txt"))).notices == (
        "w.txt: 2 documents, cut at ` = Title = ` lines (wikitext); `documents` sets how text is cut: --text-field "
        "documents=paragraphs, or =sections, =wikitext, =rows",
    )
    (tmp_path / "s.txt").write_text("\n\n".join(["paragraph " * 100] * 12))
    assert "s.txt: 3 documents, cut into blocks" in load_corpus(TextConfig(source=str(tmp_path / "s.txt"))).notices[0]
    assert load_corpus(TextConfig(source=str(tmp_path / "s.txt"), documents="paragraphs")).notices == ()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"title": "t", "text": "the article", "authors": ["Ann", "Bob"]}, ["the article"]),
        ({"text": "the article", "authors": ["Ann"], "tags": ["x"]}, ["the article"]),
        ({"version": 1, "data": [{"text": "one"}, {"text": "two"}]}, ["one", "two"]),
        ({"text": ["one", "two"]}, ["one", "two"]),
    ],
)
def test_a_json_object_is_a_row_if_it_has_a_text_of_its_own(
    tmp_path: Path, content: object, expected: list[str]
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert [text for _, text in texts(tmp_path / "a.json")] == expected


def test_lines_of_articles_are_read_until_there_are_enough_articles(tmp_path: Path) -> None:
    lines = ["\n", " = One = \n", "\n", " a \n", "\n", " = Two = \n", " b \n", " = Three = \n", " c \n"]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    assert [name for name, _ in texts(tmp_path / "r.jsonl", max_documents=2)] == ["One", "Two"]
    assert texts(tmp_path / "r.jsonl", max_documents=1) == [("One", " = One = \n\n a \n\n")]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": "p\n\n" * 4000}) + "\n" for _ in range(3)))
    assert len(texts(tmp_path / "d.jsonl", max_documents=1)[0][1]) == 12_000


def test_lone_surrogates_are_replaced_with_a_notice(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"text": "a \\ud83d b", "id": "\\udc00"}\n{"text": "c \\ud83d\\ude00"}\n')
    corpus = load_corpus(TextConfig(source=str(tmp_path / "r.jsonl")))
    assert [d.text for d in corpus] == ["a \ufffd b", "c \U0001f600"]
    assert corpus.notices == ("r.jsonl: 1 of 2 rows had lone surrogates (half characters), replaced by U+FFFD",)

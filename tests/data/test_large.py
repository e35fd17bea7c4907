"""Large plain texts read in pieces give the same documents as when read whole."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forgetting import utf8
from forgetting.config.schema import TextConfig
from forgetting.data import cutting, documents, large
from forgetting.data.documents import Corpus, load_corpus, split_heldout
from forgetting.data.texts import Texts
from forgetting.errors import ForgettingError

PARTS = [
    *("word ", "wörter ", "字", "🙂", " ", "\t", "\n", "\n\n", "\n \n", "\n\x0b\n\n", "\u2028", "\x1c", "=", " = "),
    *(
        "\n = Title = \n",
        "\n = Title =",
        " = One Title = ",
        "\n = = Section = = \n",
        "\n = 1 = \n\n",
        "x" * 50,
        "\ufeff",
    ),
]


@pytest.fixture
def piecewise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LEAST", 0)
    monkeypatch.setattr(large, "PIECE", 7)
    monkeypatch.setattr(utf8, "PIECE", 5)
    monkeypatch.setattr(cutting, "SECTION_CHARACTERS", 40)


def whole(config: TextConfig, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    with monkeypatch.context() as patch:
        patch.setattr(documents, "read_texts", lambda _: None)
        return load_corpus(config)


def outcome(read: Any) -> Any:
    try:
        corpus = read()
    except ForgettingError as error:
        return str(error)
    return [(d.id, d.text) for d in corpus], corpus.notices, corpus.ids, corpus.spaceless


def old_wikitext(text: str) -> Iterator[tuple[str, str]]:
    starts = list(re.finditer(r"^ = ([^=\n]+?) = ?\n?$", text, re.MULTILINE))
    if starts:
        yield "before-the-first-title", text[: starts[0].start()]
        ends = [match.start() for match in starts[1:]] + [len(text)]
        yield from ((m.group(1).strip(), text[m.start() : end]) for m, end in zip(starts, ends, strict=True))


def old_guess(text: str) -> str:
    title = re.compile(r"^ = ([^=\n]+?) = ?\n?$", re.MULTILINE)
    return "wikitext" if title.match(text.lstrip("\n")) or len(list(title.finditer(text))) > 1 else "sections"


@pytest.mark.parametrize("seed", range(200))
def test_a_text_is_cut_alike_whole_and_in_pieces(seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choices(PARTS, k=draw.randint(1, 40)))
    cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randint(0, 12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    blocks = [(f"paragraph-{i}", block.strip("\n")) for i, block in enumerate(re.split(r"\n\s*\n", text))]
    assert list(cutting.paragraphs(pieces)) == blocks
    assert list(cutting.sections(pieces)) == list(cutting.sections([text]))
    assert cutting.guessed_cut_of_one(pieces) == old_guess(text)
    if expected := list(old_wikitext(text)):
        assert list(cutting.wikitext(pieces)) == expected


@pytest.mark.parametrize("seed", range(40))
def test_a_text_file_has_the_same_documents_whole_and_in_pieces(
    seed: int, tmp_path: Path, piecewise: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choices(PARTS, k=draw.randint(1, 60)))
    if seed % 4 == 1:
        text = text.replace("\n", "\r\n")
    if seed % 4 == 2:
        text = text.replace("字", "\r")
    content = text.encode() + (b"\xff" if seed % 8 == 3 else b"")
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(content))
    wide = tmp_path / "utf-16" / "text.txt"
    wide.parent.mkdir()
    wide.write_bytes(text.removeprefix("\ufeff").encode("utf-16"))
    if b"\xff" not in content:
        one, other = (
            outcome(lambda source=source: load_corpus(TextConfig(source=str(source)))) for source in (path, wide)
        )
        assert str(one).replace(str(path), "") == str(other).replace(str(wide), "")
    for source in (path, packed):
        for mode in ("auto", "sections", "paragraphs", "wikitext"):
            for most in (None, 1, 3):
                if most is not None and mode != "auto" and b"\xff" in content:
                    continue  # the damage may be after the part that is read
                config = TextConfig(source=str(source), documents=mode, max_documents=most)
                found = outcome(lambda config=config: load_corpus(config))
                assert found == outcome(lambda config=config: whole(config, monkeypatch)), (source, mode, most)


CELLS = [
    "a text",
    "text of\ntwo lines",
    "",
    " \n",
    "wörter",
    "字" * 30,
    " = Title = \n",
    "a line\n",
    "half \ud83d",
    None,
    3,
]


@pytest.mark.parametrize("seed", range(60))
def test_rows_are_the_same_documents_whole_and_one_at_a_time(
    seed: int, tmp_path: Path, piecewise: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    cells = CELLS[: draw.choice([4, 6, 8, 9, 10, 10, 11])]
    rows: list[dict[str, Any]] = [{"text": draw.choice(cells)} for _ in range(draw.randint(1, 12))]
    for row in rows:
        row |= draw.choice([{}, {}, {"id": draw.choice(["row-3", "x", 7])}, {"more": 1}])
    if seed % 10 == 0:
        rows[-1] |= {"messages": [{"role": "assistant", "content": "late"}]}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + ("{" if seed % 15 == 4 else ""))
    for config in (
        TextConfig(source=str(path)),
        TextConfig(source=str(path), documents="rows"),
        TextConfig(source=str(path), documents="sections"),
        TextConfig(source=str(path), max_documents=2),
        TextConfig(source=str(tmp_path)),
    ):
        expected = outcome(lambda config=config: whole(config, monkeypatch))
        assert outcome(lambda config=config: load_corpus(config)) == expected


def test_held_out_documents_are_the_same(tmp_path: Path, piecewise: None, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    texts = [f"text {draw.randint(0, 30)} {' ' * draw.randint(0, 2)}end" for _ in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = TextConfig(source=str(path))
    large_one, small_one = load_corpus(config), whole(config, monkeypatch)
    assert isinstance(large_one.documents, Texts)
    assert isinstance(small_one.documents, tuple)
    for a, b in zip(split_heldout(large_one, 0.3), split_heldout(small_one, 0.3), strict=True):
        assert list(a) == list(b)
        assert a[1:3] == b[1:3]
        assert (a.notices, a.ids, a.spaceless) == (b.notices, b.ids, b.spaceless)


def test_without_room_for_temporary_files_a_text_is_read_whole(
    tmp_path: Path, piecewise: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Texts, "add", full)
    assert [document.text for document in load_corpus(TextConfig(source=str(path)))] == ["one", "two"]
    assert len(caplog.records) == 1
    assert "the disk is too full" in caplog.text

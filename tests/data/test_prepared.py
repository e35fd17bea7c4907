"""Cached windows equal those of a slow twin, and damaged or outdated files are never used."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import WORDS
from forgetting.config.schema import DatasetConfig, ModelConfig, TextConfig
from forgetting.data import array_cache, identity, passages, prepared
from forgetting.data.chats import Chats
from forgetting.data.documents import Corpus, Document, load_corpus, split_heldout
from forgetting.data.prepared import Corpora, Prepared
from forgetting.data.tokenizing import copies_notice
from forgetting.data.windows import Windows
from forgetting.display.numbers import share_of
from forgetting.models.loading import load_tokenizer
from hub_twin import HubCache, hub_cache

__all__ = ["hub_cache"]
CONTEXT = 16


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(ModelConfig(source=str(tiny_model)))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache folder; small corpora are cached too."""
    monkeypatch.setattr(identity, "SMALL", 0)
    return tmp_path / "cache"


def say(draw: random.Random, most: int = 60) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))


def plain_rows(seed: int, count: int = 40) -> list[dict[str, Any]]:
    """Texts of one word or many, some long lines, some empty, some copies that differ in white space."""
    draw = random.Random(seed)
    texts = [draw.choice(["", " ", say(draw, 1), say(draw), say(draw) + "\n" + say(draw, 90)]) for _ in range(count)]
    texts += [text.replace(" ", "  ") for text in draw.sample(texts, 5)]
    return [
        {"text": text} if draw.random() < 0.7 else {"text": text, "id": f"name-{i}"} for i, text in enumerate(texts)
    ]


def chat_rows(seed: int, count: int = 30) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {"messages": [{"role": role, "content": say(draw, 12)} for role in ("user", "assistant") * draw.randint(1, 2)]}
        for _ in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def slow_windows(documents: Corpus, tokenizer: Any, context: int) -> Windows:
    """One document, one window at a time."""
    chats = Chats(tokenizer)
    windows: list[tuple[int, list[int], list[bool]]] = []
    cut = 0
    for owner, document in enumerate(documents):
        if document.messages:
            parts = [(ids.tolist(), mask.tolist()) for ids, mask in chats.encode(document)]
            cut += any(len(ids) > context for ids, _ in parts)
        else:
            ids = tokenizer(document.text)["input_ids"]
            parts = [(ids[i : i + context], [True] * len(ids[i : i + context])) for i in range(0, len(ids), context)]
        for ids, mask in parts:
            mask = [False, *mask[1:context]]
            if any(mask):
                windows.append((owner, ids[:context], mask))
    dropped = len(documents) - len({owner for owner, *_ in windows})
    seen: dict[str, int] = {}
    first = [seen.setdefault(repr((d.text.split(), d.messages)), i) for i, d in enumerate(documents)]
    total = len(documents)
    notices = [f"{share_of(cut, total, 'conversation', 'was')} cut at {context} tokens"] if cut else []
    notices += [f"{share_of(dropped, total, 'document', 'has')} no target within {context} tokens"] if dropped else []
    notices += copies_notice(first)
    return Windows(
        input_ids=np.array([token for _, ids, _ in windows for token in ids], np.int32),
        predicted=np.array([target for *_, mask in windows for target in mask], bool),
        offsets=np.cumsum([0, *(len(ids) for _, ids, _ in windows)]).astype(np.int64),
        documents=np.array([owner for owner, *_ in windows], np.int32),
        document_ids=tuple(d.id for d in documents),
        notices=(*documents.notices, *notices, *chats.notices()),
        first_copy=tuple(first) if len(seen) < total else (),
    )


def slow_passages(documents: Corpus) -> set[str]:
    found = {d.spaceless_hash() for d in documents}
    texts = [text for d in documents for text in (d.text, *(str(m["content"]) for m in d.messages))]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return found | {hashlib.sha256(line.encode()).hexdigest() for line in lines if len(line) >= 80}


def equal(found: Windows, expected: Windows) -> None:
    for name in ("input_ids", "predicted", "offsets", "documents"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype
        assert np.array_equal(a, b), name
    assert tuple(found.document_ids) == tuple(expected.document_ids)
    assert found.notices == expected.notices
    assert found.first_copy == expected.first_copy
    digest = hashlib.sha256()
    for array in (expected.input_ids, expected.predicted, expected.offsets, expected.documents):
        digest.update(array.tobytes() + b"|")
    assert found.fingerprint() == digest.hexdigest()
    assert found.targets.tolist() == [int(expected.window(i)[1].sum()) for i in range(len(expected))]


def parts(config: TextConfig, tokenizer: Any, folder: Path | None) -> list[Prepared]:
    corpora = Corpora(tokenizer, CONTEXT, folder)
    return list(corpora.dataset(config)) if isinstance(config, DatasetConfig) else [corpora.text(config)]


@pytest.mark.parametrize("rows", [plain_rows, chat_rows])
@pytest.mark.parametrize("seed", range(3))
def test_windows_are_those_of_a_slow_twin_read_first_or_later(
    tokenizer: Any, kept: Path, tmp_path: Path, rows: Any, seed: int
) -> None:
    path = write(tmp_path / "rows.jsonl", rows(seed))
    for config in (DatasetConfig(source=str(path), heldout=0.3), TextConfig(source=str(path))):
        corpus = load_corpus(config)
        expected = split_heldout(corpus, config.heldout) if isinstance(config, DatasetConfig) else (corpus,)
        uncached = parts(config, tokenizer, None)
        first, second = parts(config, tokenizer, kept), parts(config, tokenizer, kept)
        for i, documents in enumerate(expected):
            for found in (uncached[i], first[i], second[i]):
                equal(found.windows, slow_windows(documents, tokenizer, CONTEXT))
                assert {row.tobytes().hex() for row in found.passages} == slow_passages(documents)
                assert found.beginnings == tuple(d.text for d in documents[:3] if d.text)
    stored = [file.name for file in kept.iterdir() if file.suffix != ".lock"]
    assert len(stored) == 2
    assert all(name.startswith("windows-") and name.endswith(".safetensors") for name in stored)


def test_a_folder_that_cannot_be_written_gives_one_notice(
    tokenizer: Any, kept: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept.write_text("a file in the folder's place")
    corpora = Corpora(tokenizer, CONTEXT, kept)
    for i in range(2):
        config = TextConfig(source=str(write(tmp_path / f"{i}.jsonl", plain_rows(i))))
        equal(corpora.text(config).windows, slow_windows(load_corpus(config), tokenizer, CONTEXT))
    assert len(caplog.records) == 1
    assert "cannot write a cache there" in caplog.text


def test_cached_windows_are_found_by_content_and_never_by_time(tokenizer: Any, kept: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "the old river"}, {"text": "the new town " * 9}])
    config = TextConfig(source=str(path))
    before = path.stat()
    (old,) = parts(config, tokenizer, kept)
    path.write_text(path.read_text().replace("the old", "the new"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    (new,) = parts(config, tokenizer, kept)
    assert new.windows.fingerprint() != old.windows.fingerprint()
    equal(new.windows, slow_windows(load_corpus(config), tokenizer, CONTEXT))

    moved = tmp_path / "elsewhere" / "rows.jsonl"
    moved.parent.mkdir()
    path.rename(moved)
    there = identity.corpus_key(TextConfig(source=str(moved)), tokenizer, CONTEXT)
    assert there is not None
    assert (kept / f"windows-{there[:32]}.safetensors").exists()


def test_everything_that_affects_windows_is_in_their_key(
    tokenizer: Any, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = write(folder / "rows.jsonl", plain_rows(0))
    config = TextConfig(source=str(path))
    keys = [
        identity.corpus_key(config, tokenizer, 16),
        identity.corpus_key(config, tokenizer, 17),
        identity.corpus_key(config.model_copy(update={"text_column": "id"}), tokenizer, 16),
        identity.corpus_key(config.model_copy(update={"max_documents": 3}), tokenizer, 16),
        identity.corpus_key(DatasetConfig(source=str(path), heldout=0.1), tokenizer, 16),
        identity.corpus_key(DatasetConfig(source=str(path), heldout=0.2), tokenizer, 16),
        identity.corpus_key(TextConfig(source=str(folder)), tokenizer, 16),
    ]
    (folder / "notes.txt").write_text("not read, but told of")
    keys.append(identity.corpus_key(TextConfig(source=str(folder)), tokenizer, 16))
    tokenizer.chat_template += " "
    keys.append(identity.corpus_key(config, tokenizer, 16))
    tokenizer.add_tokens(["<new>"])
    keys.append(identity.corpus_key(config, tokenizer, 16))
    monkeypatch.setattr(identity, "_code", lambda: "another version")
    keys.append(identity.corpus_key(config, tokenizer, 16))
    assert None not in keys
    assert len(set(keys)) == len(keys)
    tokenizer.backend_tokenizer.enable_truncation(5)  # a tokenizer file may set it; the first call removes it
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert identity.corpus_key(config, tokenizer, 16) == keys[-1]
    monkeypatch.setattr(identity, "LARGE", 10)
    for other in (
        TextConfig(source="miniature:news"),
        TextConfig(source="someone/data-that-is-not-here"),
        config.model_copy(update={"max_documents": 3}),
    ):
        assert identity.corpus_key(other, tokenizer, 16) is None
    monkeypatch.setattr(identity, "SMALL", 2**22)
    assert identity.corpus_key(config, tokenizer, 16) is None


def test_a_data_set_of_the_hub_is_kept_by_its_commit_and_files(
    tokenizer: Any, kept: Path, hub_cache: HubCache, tmp_path: Path
) -> None:
    rows = {f"{name}.jsonl": write(tmp_path / name, plain_rows(i)).read_bytes() for i, name in enumerate("ab")}
    commit = hub_cache.add("org/text", rows, kind="dataset")
    config, pinned = TextConfig(source="org/text"), TextConfig(source="org/text", revision=commit)
    (first,), (second,) = parts(config, tokenizer, kept), parts(config, tokenizer, kept)
    equal(second.windows, slow_windows(load_corpus(config), tokenizer, CONTEXT))
    assert first.windows.fingerprint() == second.windows.fingerprint()
    assert len(list(kept.glob("*.safetensors"))) == 1
    hub_cache.drop("org/text", "b.jsonl", kind="dataset")  # the same commit with one file missing
    (less,) = parts(pinned, tokenizer, kept)
    equal(less.windows, slow_windows(load_corpus(pinned), tokenizer, CONTEXT))
    assert less.windows.fingerprint() != first.windows.fingerprint()
    hub_cache.add("org/text", {"a.jsonl": rows["b.jsonl"]}, kind="dataset")
    (newer,) = parts(config, tokenizer, kept)
    equal(newer.windows, slow_windows(load_corpus(config), tokenizer, CONTEXT))


@pytest.mark.parametrize("damage", [lambda d: d[:-9], lambda d: d[:-2] + bytes([d[-2] ^ 1]) + d[-1:], lambda d: b""])
def test_a_damaged_file_is_recreated_with_one_notice(
    tokenizer: Any, kept: Path, tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = DatasetConfig(source=str(write(tmp_path / "rows.jsonl", plain_rows(1))), heldout=0.2)
    first = parts(config, tokenizer, kept)
    (file,) = kept.glob("*.safetensors")
    prints = [part.windows.fingerprint() for part in first]
    del first
    file.write_bytes(damage(file.read_bytes()))
    assert [part.windows.fingerprint() for part in parts(config, tokenizer, kept)] == prints
    assert len(caplog.records) == 1
    assert "damaged" in caplog.text
    assert [part.windows.fingerprint() for part in parts(config, tokenizer, kept)] == prints
    assert len(caplog.records) == 1


def test_a_full_disk_only_prevents_caching(
    tokenizer: Any, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = TextConfig(source=str(write(tmp_path / "rows.jsonl", plain_rows(2))))

    def full(path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(array_cache, "_seal", full)
    (found,) = parts(config, tokenizer, kept)
    equal(found.windows, slow_windows(load_corpus(config), tokenizer, CONTEXT))
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text
    assert [file for file in kept.iterdir() if file.suffix != ".lock"] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process that is killed is forked here")
def test_files_left_by_a_killed_process_are_removed(
    tokenizer: Any, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TextConfig(source=str(write(tmp_path / "rows.jsonl", plain_rows(3))))
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(array_cache, "_seal", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        parts(config, tokenizer, kept)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    (left,) = kept.glob(".windows-*")
    (found,) = parts(config, tokenizer, kept)
    equal(found.windows, slow_windows(load_corpus(config), tokenizer, CONTEXT))
    assert not left.exists()
    assert len(list(kept.glob("windows-*.safetensors"))) == 1


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    tokenizer: Any, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "rows.jsonl", plain_rows(4))
    config = TextConfig(source=str(path))

    def read(config: TextConfig) -> Corpus:
        write(path, plain_rows(5))
        return load_corpus(config)

    monkeypatch.setattr(prepared, "load_corpus", read)
    (found,) = parts(config, tokenizer, kept)
    equal(found.windows, slow_windows(load_corpus(config), tokenizer, CONTEXT))
    assert "changed while it was read" in caplog.text
    assert list(kept.glob("*.safetensors")) == []


def test_passages_are_counted_as_sets_of_whole_hashes() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        pool = generator.integers(0, 2, (12, 32), np.uint8)
        pool[1, :8] = pool[0, :8]  # equal only in their first bytes
        a, b = (pool[generator.integers(0, 12, generator.integers(0, 9))] for _ in range(2))
        expected = len({row.tobytes() for row in a} & {row.tobytes() for row in b})
        assert passages.count_shared(a, b) == expected
    document = Document(id="a", text="x")
    assert passages.hashes([document]).tobytes().hex() == document.spaceless_hash()
    assert passages.hashes([]).shape == (0, 32)

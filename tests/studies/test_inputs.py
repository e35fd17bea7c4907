"""Inputs shared by a study's runs are read once per call, and read again by the next call."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from forgetting.config.schema import StudyConfig
from forgetting.data import prepared
from forgetting.errors import UsageError
from forgetting.studies import inputs as inputs_module
from forgetting.studies.engines import Local
from forgetting.studies.execute import Worker, passes_over
from forgetting.studies.inputs import StudyInputs
from forgetting.studies.study import study
from forgetting.tuning.grid import expand_runs
from short_study import configure


@pytest.fixture
def own(tiny_model: Path, corpora: Path, tmp_path: Path) -> tuple[StudyConfig, Path, Path]:
    """A study on its own files, with replay: configuration, training file and replayed file."""
    train, replayed = tmp_path / "train.jsonl", tmp_path / "replayed.jsonl"
    train.write_text((corpora / "train.jsonl").read_text())
    rows = [json.loads(line) for line in (corpora / "chat.jsonl").read_text().splitlines()]
    replayed.write_text("".join(json.dumps({"text": row["messages"][0]["content"]}) + "\n" for row in rows))
    replay = {"name": "replay", "fraction": 0.25, "text": {"source": str(replayed)}}
    config = configure(
        tiny_model,
        corpora,
        datasets={"own": {"source": str(train), "heldout": 0.1}},
        methods=[{"name": "lora", "rank": 2, "mitigations": [[], [replay]]}],
    )
    return config, train, replayed


def shorten(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-8]))


@pytest.mark.full
def test_a_text_edited_between_two_calls_is_read_again(own: tuple[StudyConfig, Path, Path], tmp_path: Path) -> None:
    config, train, replayed = own
    first = study(config, tmp_path / "first", engine=Local(1))
    assert not first.failed
    again = study(config, tmp_path / "again", engine=Local(1))
    numbers = ["finetune_loss", "forgetting", "train_tokens"]
    assert first.table[numbers].equals(again.table[numbers])

    shorten(train)
    for folder in (first.folder, again.folder):
        folder.runs()[0].update(status="running")
    with pytest.raises(UsageError, match=r"the train text changed.* since run own-"):
        study(config, tmp_path / "first", engine=Local(1))
    new = study(config, tmp_path / "new", engine=Local(1))
    assert new.folder.runs()[0].read()["data"]["train"] != first.folder.runs()[0].read()["data"]["train"]
    assert not new.table["train_tokens"].equals(first.table["train_tokens"])

    shorten(replayed)
    mixed = next(run for run in new.folder.runs() if "replay" in run.read()["mitigation"])
    mixed.update(status="running")
    assert "the text of replay changed since this run started" in study(config, tmp_path / "new").failed[mixed.id]


@pytest.mark.full
def test_a_text_is_read_once_per_call(
    own: tuple[StudyConfig, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, *_ = own
    read: list[str] = []
    original = StudyInputs._read_dataset
    monkeypatch.setattr(
        inputs_module.StudyInputs, "_read_dataset", lambda self, name: (read.append(name), original(self, name))[1]
    )
    result = study(config, tmp_path / "s", engine=Local(1))
    assert len(result.folder.runs()) == 2
    assert read == ["own"]


def test_inputs_sent_to_another_process_contain_no_text(own: tuple[StudyConfig, Path, Path], tmp_path: Path) -> None:
    config, *_ = own
    inputs = StudyInputs(config)
    train, heldout = inputs.dataset("own")
    sent = pickle.loads(pickle.dumps(inputs))
    assert sent.config == config
    assert sent._datasets == {}
    assert [part.fingerprint() for part in sent.dataset("own")] == [train.fingerprint(), heldout.fingerprint()]
    assert len(pickle.dumps(Worker(tmp_path, inputs))) < 500


def test_each_corpus_is_read_once_for_the_check_and_the_windows(
    own: tuple[StudyConfig, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, train, _ = own
    read: list[str] = []
    original = prepared.load_corpus
    monkeypatch.setattr(prepared, "load_corpus", lambda text: (read.append(text.source), original(text))[1])
    inputs = StudyInputs(config)
    inputs.check_apart()
    inputs.dataset("own")
    inputs.text  # noqa: B018
    assert sorted(read) == sorted([str(train), config.text.source])


def test_a_general_text_that_is_trained_on_is_refused(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    general = (corpora / "general.jsonl").read_text().splitlines()
    article = json.loads(general[3])["text"]
    rows = [json.loads(line)["text"] for line in (corpora / "train.jsonl").read_text().splitlines()]

    def refused(*more: str) -> str:
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*rows, *more]))
        config = configure(tiny_model, corpora, datasets={"own": {"source": str(path), "heldout": 0.01}})
        with pytest.raises(UsageError) as caught:
            study(config, tmp_path / "s", engine=Local(1))
        assert not (tmp_path / "s").exists()
        return str(caught.value)

    assert len(article) >= 80
    message = refused(f"a line before\n{article}\na line after", f"another\n{article}")
    assert f"shares 1 passage with the training data of 'own', such as {article[:60]!r}" in message
    whole = [json.loads(line)["text"] for line in general]
    assert "passages with the training data of 'own'" in refused(*whole)


def test_replayed_windows_are_no_passes_over_the_data(tiny_model: Path, corpora: Path) -> None:
    methods = [{"name": "lora", "mitigations": [[], [{"name": "replay", "fraction": 0.25, "generated": True}]]}]
    plain, replay = expand_runs(configure(tiny_model, corpora, methods=methods))
    assert (passes_over(plain, 20), passes_over(replay, 20)) == (8 * 4 / 20, 0.75 * 8 * 4 / 20)

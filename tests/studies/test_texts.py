"""Further texts of a study: plain texts and own answers, by step, after resuming, in the table and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forgetting.config.files import parse_yaml
from forgetting.config.schema import ModelConfig, StudyConfig, validate
from forgetting.data.probes import load_answers
from forgetting.errors import UsageError
from forgetting.models.loading import Placement, load_base
from forgetting.models.pair import open_pair
from forgetting.store.folder import StudyFolder
from forgetting.store.table import load_table
from forgetting.studies.conclude import conclude
from forgetting.studies.study import study
from forgetting.tuning import stopping
from forgetting.tuning.grid import runs_by_id
from short_study import configure
from small_study import numbers


@pytest.fixture(scope="module")
def config(tiny_model: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    asked = ["the old town", "a new river went south", "north", "iron bread bridge", "the baker saw the smith", "boat"]
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked), encoding="utf-8")
    texts = {
        "own": {"probe": str(prompts), "max_new_tokens": 6},
        "plain-2": {"source": str(corpora / "train.jsonl"), "max_documents": 8},
    }
    return configure(tiny_model, corpora, texts=texts, measure={"start": 2, "every": 2})


@pytest.fixture(scope="module")
def finished(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("texts") / "whole"
    study(config, out)
    return out


def test_the_columns_equal_a_plain_loop(finished: Path, config: StudyConfig) -> None:
    """The last step's numbers by the stored adapter: full logits, log-softmax in float64, one prompt at a time."""
    (run,) = StudyFolder.open(finished).runs()
    row = run.measurements()[-1]
    (file,) = (finished / "cache").glob("answers-*.jsonl")
    stored = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    pair = open_pair(
        config.model.source, str(run.path / "adapter"), settings=ModelConfig(source="-"), placement=Placement()
    )
    change, same = [], []
    for one in stored:
        ids = torch.tensor([one["prompt_ids"] + one["answer_ids"]])
        first = len(one["prompt_ids"])
        with torch.no_grad():
            tuned = pair.tuned(ids).logits[0].double().log_softmax(-1)[first - 1 : -1]
            with pair.tuned.disable_adapter():
                base = pair.tuned(ids).logits[0].double().log_softmax(-1)[first - 1 : -1]
        top = base.argmax(-1)
        assert top.tolist() == one["answer_ids"]  # greedy
        change.append((base - tuned).gather(-1, top[:, None])[:, 0])
        same.append((tuned.argmax(-1) == top).numpy())
    assert row["forgetting[own]"] == pytest.approx(float(torch.cat(change).mean()), abs=1e-6)
    assert row["agreement[own]"] == np.concatenate(same).mean()
    assert row["kept[own]"] == np.mean([one.all() for one in same])
    assert row["text_tokens[own]"] == sum(len(one["answer_ids"]) for one in stored)
    assert row["text_documents[own]"] == len(stored)


def test_a_stopped_run_resumes_to_the_same_rows(finished: Path, config: StudyConfig, tmp_path: Path) -> None:
    def stop(event: Any) -> None:
        if event.kind == "step" and event.step == 5:
            stopping.request(15)

    with pytest.raises(stopping.StoppedError):
        study(config, tmp_path / "cut", on_event=stop)
    assert 0 < sum(map(len, numbers(tmp_path / "cut").values())) < 5
    study(config, tmp_path / "cut")
    assert numbers(tmp_path / "cut") == numbers(finished)


def test_table_report_and_configuration_contain_the_texts(finished: Path, config: StudyConfig) -> None:
    table = load_table(finished)
    assert list(table.columns).index("forgetting[own]") > list(table.columns).index("quantised")
    assert table["forgetting[plain-2]"].notna().all()
    assert table["forgetting[plain-2]_se"].iloc[-1] > 0
    assert "kept[plain-2]" not in table
    page = conclude(finished).report.read_text()
    assert 'id="texts"' in page
    assert "own: answers kept" in page
    assert validate(parse_yaml(config.to_yaml(), where=""), where="") == config


def test_a_study_without_further_texts_has_the_same_runs_and_columns_as_before(
    config: StudyConfig, finished: Path
) -> None:
    plain = config.model_copy(update={"texts": {}})
    (without,), (within,) = runs_by_id(plain).values(), runs_by_id(config).values()
    content = without.model_dump(mode="json")
    del content["texts"]
    assert without.run_id().endswith(_digest(content))
    assert within.run_id() != without.run_id()
    extra = {name for name in load_table(finished) if "[" in name}
    assert not [name for name in load_table(finished, plain) if "[" in name]
    assert len(extra) == 2 * (2 * 6 + 2) + 2


def _digest(run: dict[str, Any]) -> str:
    from forgetting.config.schema import digest_of

    return digest_of(run)


def test_wrong_texts_are_named_before_anything_runs(config: StudyConfig, tmp_path: Path) -> None:
    for texts, why in (
        ({"a": {"probe": "gone.jsonl"}}, r"texts\.a: gone\.jsonl: no such file"),
        ({"a": {"source": "gone.txt"}}, r"texts\.a: gone\.txt: no such file"),
        ({"a": {"probe": "default", "max_new_tokens": 16}}, r"texts\.a: answers to default: an answer of 16 tokens"),
    ):
        fields = config.model_dump(mode="json") | {"texts": texts}
        with pytest.raises(UsageError, match=why):
            study(validate(fields, where="t"), tmp_path / "none")


def test_changed_answers_are_generated_again(finished: Path, config: StudyConfig) -> None:
    (file,) = (finished / "cache").glob("answers-*.jsonl")
    key = json.loads(file.read_text().splitlines()[0])["answers"]
    whole = load_answers(file, key)
    assert whole is not None
    text = file.read_text()
    file.write_text(text.replace('"answer_ids": [', '"answer_ids": [7, ', 1))
    assert load_answers(file, key) is None
    assert load_answers(file, "other") is None
    from forgetting.studies.inputs import StudyInputs

    StudyInputs(config).texts(load_base(config.model), finished)
    assert file.read_text() == text

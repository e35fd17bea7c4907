"""A study whose program is replaced while it runs stops with one line and mixes no two versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forgetting.config.schema import validate
from forgetting.errors import ForgettingError
from forgetting.store.folder import StudyFolder
from forgetting.studies import own_code
from forgetting.studies.engines import Event, Local
from forgetting.studies.study import study
from small_study import fields


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only module of a package that stands in for ours."""
    path = tmp_path / "package" / "tuning" / "run.py"
    path.parent.mkdir(parents=True)
    path.write_text("one = 1\n")
    monkeypatch.setattr(own_code, "_FOLDER", tmp_path / "package")
    monkeypatch.setattr(own_code, "_begun", (own_code._times(), own_code._hashes()))
    return path


def test_another_modification_time_is_not_a_change(module: Path) -> None:
    os.utime(module, (0, 0))
    own_code.check_same()


@pytest.mark.parametrize("how", ["edited", "removed", "added"])
def test_changed_files_are_named(module: Path, how: str) -> None:
    file = module if how != "added" else module.with_name("new.py")
    file.unlink() if how == "removed" else file.write_text("two = 2\n")
    with pytest.raises(ForgettingError, match=rf"changed while it ran \(tuning/{file.name}\).*run the same command"):
        own_code.check_same()


@pytest.mark.full
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_study_stops_before_the_next_run(
    module: Path, tiny_model: Path, corpora: Path, tmp_path: Path, jobs: int
) -> None:
    methods = [{"name": "lora", "rank": [1, 2, 3]}]
    config = validate(fields(tiny_model, corpora, methods=methods), where="test")

    def hear(event: Event) -> None:
        if event.kind == "ended":
            module.write_text("two = 2\n")

    if jobs == 2:  # workers have modules of their own: the process that starts them looks
        module.write_text("two = 2\n")
    with pytest.raises(ForgettingError, match="the code of this program changed while it ran"):
        study(config, tmp_path / "s", engine=Local(jobs), on_event=hear)
    states = [run.state().get("status") for run in StudyFolder.open(tmp_path / "s").runs()]
    assert states == (["done"] if jobs == 1 else [])

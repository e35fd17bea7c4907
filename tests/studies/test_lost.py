"""Rows and folders lost while a study is interrupted or running are detected, named, and restored by resuming."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from test_faults import stopped_at

from forgetting.config.schema import StudyConfig, validate
from forgetting.store import folder as folders
from forgetting.store.chain import chain_of
from forgetting.store.folder import StudyFolder
from forgetting.studies.conclude import study as whole_study
from forgetting.studies.engines import Local
from forgetting.studies.study import study
from forgetting.tuning import checkpoints
from small_study import command, fields, numbers, rows, start, wait_for_rows, write_config

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def config(tiny_model: Path, corpora: Path) -> StudyConfig:
    return validate(fields(tiny_model, corpora), where="test")


@pytest.fixture(scope="module")
def whole(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study undisturbed."""
    out = tmp_path_factory.mktemp("whole") / "s"
    study(config, out, engine=Local(1))
    return out


@pytest.fixture(scope="module")
def stopped(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study stopped at step 6; tests resume copies of it."""
    out = tmp_path_factory.mktemp("stopped") / "s"
    stopped_at(config, out, 6)
    return out


def sealed(out: Path) -> dict[str, Any]:
    (run,) = StudyFolder.open(out).runs()
    return {key: run.read()["measured"][key] for key in ("rows", "chain")}


@pytest.mark.parametrize("step", [3, 6, 11])
def test_a_resumed_run_has_the_chain_of_an_uninterrupted_one(
    config: StudyConfig, whole: Path, tmp_path: Path, step: int
) -> None:
    stopped_at(config, tmp_path / "s", step)
    study(config, tmp_path / "s", engine=Local(1))
    (run,) = StudyFolder.open(tmp_path / "s").runs()
    made = chain_of(run.measurements())
    assert sealed(tmp_path / "s") == sealed(whole) == {"rows": made.rows, "chain": made.head}
    assert made.rows == 7


@pytest.mark.parametrize("how", ["file", "row", "digit", "line"])
@pytest.mark.parametrize("old", [False, True])
def test_rows_lost_before_a_checkpoint_are_measured_again(
    config: StudyConfig, whole: Path, stopped: Path, tmp_path: Path, how: str, old: bool
) -> None:
    """An interrupted run resumes from a checkpoint only if the rows up to it are unchanged."""
    shutil.copytree(stopped, tmp_path / "s")
    if old:  # checkpoints of a version that stored no hash chain
        for one in (tmp_path / "s").glob("runs/*/checkpoints/checkpoint-*"):
            mark = json.loads((one / checkpoints.MARK).read_text())
            del mark["state"]["rows"], mark["state"]["chain"]
            (one / checkpoints.MARK).write_text(json.dumps(mark))
    (run,) = StudyFolder.open(tmp_path / "s").runs()
    file = run.path / "measurements.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    changed = {
        "file": None,
        "row": [lines[0], *lines[2:]],
        "digit": [lines[0], lines[1].replace('"forgetting_loss": ', '"forgetting_loss": 1'), *lines[2:]],
        "line": [lines[0], lines[1][:30] + "\n", *lines[2:]],
    }[how]
    file.unlink() if changed is None else file.write_text("".join(changed))
    study(config, tmp_path / "s", engine=Local(1))
    notices = " ".join(run.read()["notices"])
    if old and how == "digit":  # that version stored nothing that could detect it
        assert "started again" not in notices
        return
    message = "line 2: damaged" if how == "line" else "rows up to the checkpoint at step 6 are lost or changed"
    assert message in notices
    assert "started again at step 0" in notices
    assert numbers(tmp_path / "s") == numbers(whole)
    assert sealed(tmp_path / "s") == sealed(whole)


def test_a_damaged_run_is_not_skipped_silently(
    config: StudyConfig, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    shutil.copytree(whole, out)
    (run,) = StudyFolder.open(out).runs()
    (run.path / "measurements.jsonl").unlink()
    again = f"restore the file, or delete {run.path} and run the study again"
    message = f"{run.id}: measurements.jsonl has 0 rows instead of 7; {again}"
    code, _, err = command(capsys, "study", out, "--jobs", 1)
    assert code == 1
    assert err.splitlines()[-1] == f"error: {out}: no usable measurement: damaged, left out: {message}"
    code, output, err = command(capsys, "run", out, run.id, "--json")
    assert (code, json.loads(output)["status"]) == (1, "damaged")
    assert "is damaged: measurements.jsonl has 0 rows" in err
    assert not (run.path / "measurements.jsonl").exists()
    shutil.rmtree(run.path)
    made = whole_study(out, engine=Local(1))
    assert (made.left.damaged, made.failed) == ({}, {})
    assert numbers(out) == numbers(whole)


@pytest.mark.parametrize(
    ("how", "jobs"),
    [("rm", 1), *(pytest.param(*more, marks=pytest.mark.slow) for more in (("mv", 1), ("mv", 2), ("rm", 2)))],
)
def test_a_study_whose_folder_is_moved_while_it_runs_stops_and_writes_nothing(
    tmp_path: Path, tiny_model: Path, corpora: Path, how: str, jobs: int
) -> None:
    ranks = [{"name": "lora", "rank": [2, 4, 8] if jobs == 2 else [2, 4]}]
    config = write_config(tmp_path, tiny_model, corpora, ranks, steps=400)
    out, moved = tmp_path / "there" / "s", tmp_path / "moved"
    process = start(config, out, jobs)
    wait_for_rows(out, 3 * jobs, process)
    if how == "mv":
        out.rename(moved)
    else:
        while out.exists():
            shutil.rmtree(out, ignore_errors=True)
    _, errors = process.communicate(timeout=120)
    lines = errors.decode().splitlines()
    assert process.returncode == 1, lines
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "deleted or moved during the run" in lines[-1]
    assert not out.exists()
    assert list((tmp_path / "there").iterdir()) == []
    if how == "mv":
        seen = rows(moved)
        assert sum(map(len, seen.values())) >= 3 * jobs
        again = start(moved, moved, jobs)
        wait_for_rows(moved, sum(map(len, seen.values())) + 2, again)
        os.killpg(again.pid, signal.SIGKILL)
        again.communicate()
        assert all(rows(moved)[name][: len(before) - 1] == before[:-1] for name, before in seen.items() if before)


def test_a_folder_that_vanishes_while_a_run_is_locked_is_reported_as_that(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as a missing file inside it."""
    out = tmp_path / "s"
    hold = folders.hold

    def vanishing(path: Path) -> Any:
        if path.parent.parent == out.resolve() / "runs":
            shutil.rmtree(out)
        return hold(path)

    monkeypatch.setattr(folders, "hold", vanishing)
    with pytest.raises(folders.GoneError, match="deleted or moved during the run"):
        study(config, out, engine=Local(1))
    assert not out.exists()

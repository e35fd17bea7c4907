"""The study folder: atomic and append-only writing, incomplete last lines, damaged files."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from forgetting.config.files import load_preset
from forgetting.errors import ForgettingError, UsageError
from forgetting.files import write_atomically
from forgetting.measuring.estimate import Mean
from forgetting.measuring.quantities import STUDY, columns, row
from forgetting.store.columns import COLUMNS
from forgetting.store.folder import HeldError, RunFolder, StudyFolder
from forgetting.store.run_files import DamagedError, shared_by_rows
from forgetting.store.table import load_table

CONFIG = load_preset("paper-openorca")


def run_folder(path: Path) -> RunFolder:
    folder = RunFolder(path / "runs" / "a-lora-r8-s0-x")
    folder.update(status="running", dataset="a", method={"name": "lora", "rank": 8}, seed=0)
    return folder


def test_rows_come_back_as_written_and_a_missing_error_is_null(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    value = 0.1 + 0.2
    folder.append({"step": 0, **row({"finetune_loss": Mean(value, math.nan, 40, 1)})})
    folder.append({"step": 10, "finetune_loss": 1e-300, "finetune_loss_se": 0.5})
    assert folder.measurements() == [
        {"step": 0, "finetune_loss": value, "finetune_loss_se": None},
        {"step": 10, "finetune_loss": 1e-300, "finetune_loss_se": 0.5},
    ]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path, value: float) -> None:
    folder = run_folder(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.append({"step": 0, "finetune_loss": value})
    assert folder.measurements() == []


def test_an_incomplete_last_line_is_left_out_and_dropped_on_resume(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for step in (0, 10, 20):
        folder.append({"step": step})
    file = folder.path / "measurements.jsonl"
    file.write_bytes(file.read_bytes()[:-4])
    assert [row["step"] for row in folder.measurements()] == [0, 10]
    folder.keep_until(0)
    folder.append({"step": 10})
    assert [row["step"] for row in folder.measurements()] == [0, 10]


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder.path / "measurements.jsonl").write_text('{"step": 0}\n{"step"\n{"step": 20}\n')
    with pytest.raises(ForgettingError, match=r"measurements\.jsonl, line 2: damaged"):
        folder.measurements()
    (folder.path / "run.json").write_text("{")
    with pytest.raises(ForgettingError, match=r"run\.json: damaged"):
        folder.read()
    (folder.path / "run.json").write_text('{"schema": 99}')
    with pytest.raises(ForgettingError, match="schema 99; this version reads 1"):
        folder.read()


def test_table_has_every_column_and_marks_failed_runs(tmp_path: Path) -> None:
    StudyFolder.create_or_resume(tmp_path / "s", CONFIG)
    folder = run_folder(tmp_path / "s")
    folder.append({"step": 0, "finetune_loss": 1.5, "finetune_loss_se": None})
    folder.update(status="failed", why="diverged")
    table = load_table(tmp_path / "s")
    assert list(table.columns) == list(COLUMNS)
    assert set(columns(STUDY)) < set(COLUMNS)
    row = table.iloc[0]
    assert (row["status"], row["rank"], row["step"], row["finetune_loss"]) == ("failed", 8, 0, 1.5)
    assert math.isnan(row["finetune_loss_se"])
    assert load_table(tmp_path / "s").equals(table)


@pytest.mark.parametrize(
    ("mitigations", "share"),
    [([], 0.0), ([{"name": "kl"}], 0.0), ([{"name": "kl"}, {"name": "replay", "fraction": 0.02}], 0.02)],
)
def test_the_share_of_replay_is_a_column(tmp_path: Path, mitigations: list[dict[str, object]], share: float) -> None:
    record = {"config": {"mitigations": mitigations}, "method": {"name": "lora"}, "dataset": "d", "status": "done"}
    found = shared_by_rows(record, tmp_path)["replay_fraction"]
    assert (found, type(found)) == (share, float)


@pytest.mark.parametrize(
    ("mitigations", "weight"),
    [([], 0.0), ([{"name": "kl", "weight": 2.0}], 2.0), ([{"name": "budget"}], None), ([{"name": "replay"}], 0.0)],
)
def test_the_weight_of_kl_is_a_column(
    tmp_path: Path, mitigations: list[dict[str, object]], weight: float | None
) -> None:
    record = {"config": {"mitigations": mitigations}, "method": {"name": "lora"}, "dataset": "d", "status": "done"}
    assert shared_by_rows(record, tmp_path)["kl_weight"] == weight


@pytest.mark.parametrize("given", ["0.1", True, 1.0, -0.1])
def test_an_invalid_share_of_replay_is_damage(tmp_path: Path, given: object) -> None:
    config = {"mitigations": [{"name": "replay", "fraction": given}]}
    with pytest.raises(DamagedError, match="replay_fraction is"):
        shared_by_rows({"config": config, "method": {"name": "lora"}, "dataset": "d", "status": "done"}, tmp_path)


def test_an_empty_study_has_an_empty_table(tmp_path: Path) -> None:
    StudyFolder.create_or_resume(tmp_path / "s", CONFIG)
    assert load_table(tmp_path / "s").empty


def test_runs_that_cannot_be_listed_are_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = StudyFolder(tmp_path)
    assert folder.folders() == []
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(os, "scandir", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(UsageError, match="runs: cannot be read: Permission denied"):
        folder.folders()


def test_a_folder_contains_one_study(tmp_path: Path) -> None:
    StudyFolder.create_or_resume(tmp_path / "s", CONFIG)
    StudyFolder.create_or_resume(tmp_path / "s", CONFIG)
    other = CONFIG.model_copy(update={"context": 256})
    with pytest.raises(UsageError, match=r"another configuration \(context: there 512, now 256\)"):
        StudyFolder.create_or_resume(tmp_path / "s", other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="neither empty nor a study folder"):
        StudyFolder.create_or_resume(tmp_path / "full", CONFIG)
    with pytest.raises(UsageError, match=r"a file; out \(--out\) needs a folder"):
        StudyFolder.create_or_resume(tmp_path / "full" / "thesis.tex", CONFIG)
    with pytest.raises(UsageError, match="not a study folder"):
        StudyFolder.open(tmp_path / "full")
    with pytest.raises(UsageError, match="no such folder"):
        StudyFolder.open(tmp_path / "none")


def _hold(path: Path, held: multiprocessing.synchronize.Event, release: multiprocessing.synchronize.Event) -> None:
    with RunFolder(path).lock():
        held.set()
        release.wait(30)


@pytest.mark.full
def test_a_run_is_locked_by_one_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "r", held, release))
    process.start()
    assert held.wait(60)
    with (
        pytest.raises(ForgettingError, match=r"run r: held by process \d+ on .+ since "),
        RunFolder(tmp_path / "r").lock(),
    ):
        pass
    process.kill()  # the operating system releases the lock
    process.join()
    with RunFolder(tmp_path / "r").lock():
        pass


def test_a_lock_names_its_process_and_is_released_at_the_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    assert folder.held_by() is None
    with folder.lock():
        assert str(folder.held_by()).startswith(f"process {os.getpid()} on ")
        with pytest.raises(HeldError), folder.lock():
            pass
        (folder.path / "lock").write_bytes(b"x")  # its content is only for people to read
        assert folder.held_by() == "another process"
    assert folder.held_by() is None


def test_a_file_system_without_locks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("filelock.lock_descriptor", refuse)
    with (
        pytest.raises(ForgettingError, match=r"lock: cannot be locked \(Function not implemented\), so two processes"),
        RunFolder(tmp_path / "r").lock(),
    ):
        pass


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "f.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_run_json_keeps_fields_that_are_not_updated(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    folder.update(status="done")
    assert json.loads((folder.path / "run.json").read_text())["dataset"] == "a"
    assert folder.read()["status"] == "done"


def test_the_last_row_of_a_run_is_of_the_trained_weights():
    import pandas as pd

    from forgetting.store.summary import last_rows

    rows = [
        {"run_id": "a", "step": 4, "alpha": None, "forgetting": 0.1, "kl": 0.3},
        {"run_id": "a", "step": 8, "alpha": None, "forgetting": 0.2, "kl": None},
        {"run_id": "a", "step": 8, "alpha": 0.4, "forgetting": 0.05, "kl": 0.01},
        {"run_id": "b", "step": 4, "alpha": None, "forgetting": 0.3, "kl": 0.2},
    ]
    last = last_rows(pd.DataFrame(rows)).sort_values("run_id")
    assert last["forgetting"].tolist() == [0.2, 0.3]
    assert last["kl"].isna().tolist() == [True, False]  # never a value of an earlier step


def test_a_law_over_replay_takes_the_options_of_finished_runs_before_those_of_others():
    import pandas as pd

    from forgetting.store.table import rows_to_fit

    runs = [("plain", "", 0.0, "done")]
    runs += [(f"a{n}", f"replay fraction=0.{n} text=a", n / 10, "done") for n in (1, 2)]
    runs += [(f"b{n}", f"replay fraction=0.{n} text=b", n / 10, "unasked") for n in (1, 2, 3)]
    names = ("run_id", "mitigation", "replay_fraction", "status")
    same = {"label": "lora", "reference": "lora", "kl_weight": 0.0, "step": 50, "measure_start": 50, "alpha": None}
    table = pd.DataFrame([dict(zip(names, run, strict=True)) | same for run in runs])
    assert set(rows_to_fit(table)[1]["replay"]["run_id"]) == {"plain", "a1", "a2"}
    other = table.assign(dataset="other", mitigation=table["mitigation"].str.replace("text=a", "text=c"))
    both = rows_to_fit(pd.concat([table.assign(dataset="one"), other]))[1]["replay"]
    assert both["run_id"].tolist() == 2 * ["plain", "a1", "a2"]
    failed = table.assign(status="failed")
    assert set(rows_to_fit(failed)[1]["replay"]["run_id"]) == {"plain", "b1", "b2", "b3"}

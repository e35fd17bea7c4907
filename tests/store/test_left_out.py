"""One damaged run, or a folder that is not a run, is left out by name, and the others are used."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from test_damage import change

import forgetting
from forgetting.analysis.study_table import counted_runs, read_study
from forgetting.config.files import study_config
from forgetting.errors import UsageError
from forgetting.store import table_cache
from forgetting.store.folder import RunFolder, StudyFolder
from forgetting.store.table import load_table
from forgetting.studies.conclude import conclude
from forgetting.studies.study import left
from forgetting.tuning.grid import runs_by_id
from small_study import command

pytestmark = pytest.mark.full


def lines_of(run: RunFolder) -> list[str]:
    return (run.path / "measurements.jsonl").read_text().splitlines(keepends=True)


def damaged_by(study: Path, how: str) -> str:
    """Damage the files of the eighth run; returns the expected description."""
    run, other = StudyFolder.open(study).runs()[7:9]
    record, rows = run.path / "run.json", run.path / "measurements.jsonl"
    fields, lines = json.loads(record.read_text()), lines_of(run)
    if how.startswith("row: "):  # as written by a version that stored no hashes
        name, _, value = how.removeprefix("row: ").partition("=")
        row = lines[2].replace(f'"{name}": {json.dumps(json.loads(lines[2])[name])}', f'"{name}": {value}')
        rows.write_text("".join([*lines[:2], row, *lines[3:]]))
        run.update(measured=None)
        return {
            "NaN": f"measurements.jsonl, line 3: {name} is nan where a finite number is needed",
            "null": f"measurements.jsonl has no {name} in line 3",
            '"5"': f"measurements.jsonl, line 3: {name} is '5' where a finite number is needed",
        }[value]
    if how == "cut row":
        rows.write_text("".join([*lines[:2], lines[2][:40] + "\n", *lines[3:]]))
        return "measurements.jsonl was changed; it is not what was measured (6 rows); measurements.jsonl, line 3: not"
    if how == "row twice":
        change(rows, how)
        return "has 7 rows instead of 6; measurements.jsonl has step 20 twice, in lines 3 and 4"
    if how == "middle row":
        change(rows, how)
        return "has 5 rows instead of 6; measurements.jsonl lacks step 20"
    if how == "pipe of rows":
        rows.unlink()
        os.mkfifo(rows)
        return "measurements.jsonl: not a plain file"
    if how == "pipe of a record":
        record.unlink()
        os.mkfifo(record)
        return "run.json: not a plain file"
    if how == "no record":
        record.unlink()
        return "run.json is missing"
    texts = {
        "cut record": (json.dumps(fields)[:300], "run.json: not JSON: "),
        "list": ("[]", "run.json: schema list; this version reads 1"),
        "record of another": ((other.path / "run.json").read_text(), f"run.json: it belongs to run '{other.id}'"),
        "other id": (json.dumps({**fields, "run_id": "../../x"}), "run.json: it belongs to run '../../x'"),
        "other seed": (json.dumps({**fields, "seed": 9}), "run.json: its seed does not match its config"),
        "other config": (
            json.dumps({**fields, "config": {**fields["config"], "context": 64}}),
            "run.json: its config does not match the run's id",
        ),
        "no config": (json.dumps({**fields, "config": 3}), "run.json: its config is not that of a run"),
        "number": (json.dumps({**fields, "dataset": 3, "config": None}), "run.json: dataset is 3"),
    }
    record.write_text(texts[how][0])
    return texts[how][1]


DAMAGES = [
    *(f"row: finetune_loss={value}" for value in ("NaN", "null", '"5"')),
    *("row: forgetting_loss=null", "cut row", "row twice", "middle row"),
    *("pipe of rows", "pipe of a record", "no record", "cut record", "list"),
    *("record of another", "other id", "other seed", "other config", "no config", "number"),
]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("kept", [False, pytest.param(True, marks=pytest.mark.full)])
def test_one_damaged_run_is_left_out_by_name_and_the_others_are_used(
    study: Path, how: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kept:
        monkeypatch.setattr(table_cache, "KEPT_FROM", 1)
        load_table(study)
    runs = StudyFolder.open(study).runs()
    name = runs[7].id
    whole = read_study(study).table
    says = damaged_by(study, how)
    shutil.rmtree(runs[20].path)
    found = read_study(study)
    assert list(found.left.damaged) == [name]
    assert says in found.left.damaged[name]
    assert found.left.damaged[name].endswith(f"; restore the file, or delete {runs[7].path} and run the study again")
    assert found.left.foreign == {}
    (row,) = found.table[found.table["run_id"] == name].to_dict("records")
    assert (row["status"], row["label"], name.startswith(f"{row['dataset']}-lora-r{row['rank']}-s")) == (
        "damaged",
        "lora",
        True,
    )
    assert math.isnan(row["forgetting_loss"])
    good = whole[~whole["run_id"].isin([name, runs[20].id])].reset_index(drop=True)
    assert found.counted().equals(good)
    assert set(left(study)) == {runs[20].id} | ({name} if how == "no record" else set())
    (record,) = [one for one in counted_runs(StudyFolder.open(study), found.left) if one["run_id"] == name]
    assert (record["status"], record["method"]["name"]) == ("damaged", "lora")


def test_a_folder_that_is_not_a_run_of_the_study_is_left_out_by_name(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_study(study).table
    run = StudyFolder.open(study).runs()[7]
    for name in (f"{run.id}.bak", "x\x1b[31m\nerror: y", f"{run.id}\udcff"):
        shutil.copytree(run.path, run.path.parent / name)
    shutil.copytree(run.path, run.path.parent / "rows")
    (run.path.parent / "rows" / "run.json").unlink()
    (run.path.parent / "notes").mkdir()
    (run.path.parent / "notes.txt").touch()
    found = read_study(study)
    assert list(found.left.foreign) == [f"{run.id}.bak", f"{run.id}\\udcff", "rows", "x\\x1b[31m\\nerror: y"]
    assert found.left.damaged == {}
    assert found.counted().equals(whole)
    assert left(study) == []
    message = f"run.json: it belongs to run '{run.id}', but is in the folder of another; move it out of runs/"
    assert found.left.foreign[f"{run.id}.bak"] == message
    assert found.left.foreign["rows"].startswith("run.json is missing, so measurements.jsonl belongs to no known run")
    made = forgetting.fit(study, "linear", dataset=run.id.split("-")[0], bootstrap=0)
    assert made.n_runs == 20
    assert any(f"{run.id}.bak (damaged)" in warning for warning in made.warnings)
    code, _, err = command(capsys, "table", study, "--csv")
    assert (code, len(err.splitlines())) == (0, 4)
    assert f"not a run of this study, left out: runs/{run.id}.bak: {message}" in err.splitlines()


@pytest.mark.parametrize("name", ["lock", "adapter"])
def test_a_link_in_a_finished_run_is_refused(study: Path, name: str) -> None:
    folder = StudyFolder.open(study)
    link = folder.runs()[7].path / name
    link.symlink_to(study.parent)
    for read in (lambda: load_table(study), lambda: folder.check(folder.config())):
        with pytest.raises(UsageError, match=f"{name}: a symbolic link"):
            read()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_configuration_that_is_not_a_plain_file_is_refused_before_it_is_read(study: Path, kind: str) -> None:
    file = study / "study.yaml"
    file.rename(study.parent / "elsewhere.yaml")
    file.symlink_to(study.parent / "elsewhere.yaml") if kind == "link" else os.mkfifo(file)
    for read in (lambda: study_config(study), lambda: load_table(study)):
        with pytest.raises(UsageError, match=r"study\.yaml: (a symbolic link|not a plain file)"):
            read()


def test_a_comparison_of_methods_that_the_study_no_longer_has_is_deleted(study: Path) -> None:
    (study / "compare.json").write_text("{}")
    assert conclude(study).comparison is None
    assert not (study / "compare.json").exists()


def test_a_run_whose_files_have_the_time_0_is_read_like_any_other(study: Path) -> None:
    before = load_table(study)
    for file in study.glob("runs/*/*"):
        os.utime(file, ns=(0, 0))
    assert load_table(study).equals(before)


def test_a_call_whose_runs_failed_at_once_does_not_say_that_nothing_was_left_to_run(study: Path) -> None:
    made = conclude(study)
    first, *others = runs_by_id(made.config)
    assert "(nothing left to run)" in str(replace(made, skipped=(first, *others)))
    assert "(nothing left to run)" not in str(replace(made, skipped=tuple(others), failed={first: "no"}, seconds=0.1))


def test_runs_that_diverged_are_not_said_to_be_run_again(study: Path) -> None:
    run, other, *_ = StudyFolder(study).runs()
    run.update(status="failed", kind="diverged", why="loss is nan")
    made = conclude(study)
    assert list(made.failed) == [run.id]
    assert not [line for line in made.next_commands() if "run the failed runs again" in line]
    other.update(status="failed", kind="error", why="out of memory")
    assert [line for line in conclude(study).next_commands() if "run the failed runs again" in line]

"""Lost, changed, repeated and misplaced rows are detected, named and left out; the hash chain that detects them."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import forgetting
from forgetting.analysis.plan.source import load_laws
from forgetting.analysis.study_table import read_study
from forgetting.errors import ForgettingError, UsageError
from forgetting.files import parse_yaml
from forgetting.store import chain, table_cache
from forgetting.store.columns import COSTS
from forgetting.store.folder import GoneError, RunFolder, StudyFolder
from forgetting.store.table import fitted_rows, load_table
from forgetting.studies.conclude import conclude
from forgetting.studies.study import left
from small_study import command

pytestmark = pytest.mark.full


def slow_chain(rows: list[dict[str, Any]]) -> str:
    """The chain by hand."""
    head = ""
    for row in rows:
        numbers = ",".join(
            f"{json.dumps(name)}:{json.dumps(value)}" for name, value in sorted(row.items()) if name not in COSTS
        )
        head = hashlib.sha256((head + "\n{" + numbers + "}").encode()).hexdigest()
    return head


ROWS = [
    {"step": 0, "alpha": None, "finetune_loss": 0.1 + 0.2, "train_seconds": 1.5},
    {"finetune_loss": 1e-300, "step": 10, "alpha": None, "train_seconds": 2.5},
    {"step": 10, "alpha": 0.5, "finetune_loss": -2.0, "peak_memory": 7},
]


def test_the_chain_is_that_of_a_slow_twin_and_takes_no_times(tmp_path: Path) -> None:
    assert chain.chain_of([]) == chain.Chain(0, "")
    made = chain.chain_of(ROWS)
    assert made == chain.Chain(3, slow_chain(ROWS))
    assert chain.chain_of([{**row, "train_seconds": 9.0, "measure_seconds": 1.0} for row in ROWS]) == made
    assert chain.chain_of(ROWS[:2]).after(ROWS[2]) == made
    others = [ROWS[:2], ROWS[1:], [ROWS[1], ROWS[0], ROWS[2]], [*ROWS, ROWS[2]], [ROWS[0], {**ROWS[1], "step": 11}]]
    assert made not in map(chain.chain_of, others)
    run = RunFolder(tmp_path / "r")
    run.update(status="running")
    run.keep_until(-1)
    for row in ROWS:
        run.append(row)
    assert run.written() == {"rows": 3, "chain": made.head}
    run.seal(status="done")
    content = (run.path / "measurements.jsonl").read_bytes()
    sealed = {"rows": 3, "chain": made.head, "sha256": hashlib.sha256(content).hexdigest()}
    assert run.read()["measured"] == sealed


def test_a_run_interrupted_after_any_row_and_resumed_has_the_chain_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = chain.chain_of(ROWS)
    for cut in range(len(ROWS) + 1):
        run = RunFolder(tmp_path / str(cut))
        run.path.mkdir()
        run.keep_until(-1)
        for row in ROWS[:cut]:
            run.append(row)
        again = RunFolder(run.path)
        kept = again.keep_until(0)
        assert kept == ROWS[: min(cut, 1)]
        for row in ROWS[len(kept) :]:
            again.append({**row, "train_seconds": 99.0})
        assert again.written() == {"rows": 3, "chain": whole.head}


def test_rows_changed_during_a_run_are_detected_when_it_ends(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    run.path.mkdir()
    run.keep_until(-1)
    for row in ROWS:
        run.append(row)
    file = run.path / "measurements.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ForgettingError, match=r"measurements\.jsonl: changed by another process while the run wrote"):
        run.seal(status="done")
    assert run.read() == {}


def change(file: Path, how: str) -> None:
    lines = file.read_text().splitlines(keepends=True)
    if how == "file":
        file.unlink()
    elif how == "empty":
        file.write_text("")
    elif how == "last row":
        file.write_text("".join(lines[:-1]))
    elif how == "end of the last row":
        file.write_text("".join(lines)[:-9])
    elif how == "middle row":
        file.write_text("".join(lines[:2] + lines[3:]))
    elif how == "row twice":
        file.write_text("".join([*lines[:3], *lines[2:]]))
    elif how == "two rows swapped":
        file.write_text("".join([*lines[:2], lines[3], lines[2], *lines[4:]]))
    elif how == "negative step":
        file.write_text("".join([*lines[:2], lines[2].replace('"step": 20', '"step": -20'), *lines[3:]]))
    elif how == "step off the grid":
        file.write_text("".join([*lines[:2], lines[2].replace('"step": 20', '"step": 21'), *lines[3:]]))
    elif how in ("digit", "digit of a time"):
        name = "forgetting_loss" if how == "digit" else "train_seconds"
        row = json.loads(lines[2])
        old = json.dumps(row[name])
        new = old[:-1] + ("1" if old[-1] != "1" else "2")
        file.write_text("".join([*lines[:2], lines[2].replace(f'"{name}": {old}', f'"{name}": {new}'), *lines[3:]]))
    else:
        raise AssertionError(how)


SEALED = {
    "file": "has 0 rows instead of 6",
    "empty": "has 0 rows instead of 6",
    "last row": "has 5 rows instead of 6",
    "end of the last row": "has 5 rows instead of 6",
    "middle row": "has 5 rows instead of 6",
    "row twice": "has 7 rows instead of 6",
    "two rows swapped": "measurements.jsonl was changed; it is not what was measured (6 rows)",
    "negative step": "measurements.jsonl was changed",
    "step off the grid": "measurements.jsonl was changed",
    "digit": "measurements.jsonl was changed",
    "digit of a time": "measurements.jsonl was changed",
}
UNSEALED = {
    "file": "lacks step 0",
    "last row": "lacks step 50",
    "end of the last row": "lacks step 50",
    "middle row": "lacks step 20",
    "row twice": "has step 20 twice",
    "two rows swapped": "steps in measurements.jsonl are out of order",
    "negative step": "has a row at step -20",
    "step off the grid": "has step 21, which is not a measured step of this run",
}


@pytest.mark.parametrize(
    ("how", "says", "sealed"),
    [*((how, says, True) for how, says in SEALED.items()), *((how, says, False) for how, says in UNSEALED.items())],
)
def test_lost_and_changed_rows_are_damage(study: Path, how: str, says: str, sealed: bool) -> None:
    run = StudyFolder.open(study).runs()[7]
    if not sealed:  # as written by a version that stored no hashes
        run.update(measured=None)
    assert run.damage() == ""
    assert set(load_table(study)["status"]) == {"done"}
    change(run.path / "measurements.jsonl", how)
    assert says in run.damage()
    assert run.damage().endswith(f"; restore the file, or delete {run.path} and run the study again")
    table = load_table(study)
    rows = table[table["run_id"] == run.id]
    assert rows["status"].tolist() == ["damaged"]
    assert rows["step"].isna().all()
    assert rows["forgetting_loss"].isna().all()
    others = table[table["run_id"] != run.id]
    assert len(others) == 39 * 6
    assert set(others["status"]) == {"done"}
    assert left(study) == []  # it is not run again until the user asks for it
    shutil.rmtree(run.path)
    assert left(study) == [run.id]


@pytest.mark.parametrize("how", ["middle row", "row twice", "negative step", "step off the grid"])
def test_rows_of_a_running_run_are_the_first_steps_of_its_grid(study: Path, how: str) -> None:
    run = StudyFolder.open(study).runs()[7]
    run.update(status="running", measured=None)
    change(run.path / "measurements.jsonl", "last row")
    assert (load_table(study)["status"] == "running").sum() == 5
    change(run.path / "measurements.jsonl", how)
    assert (load_table(study)["status"] == "damaged").sum() == 1


def test_damage_is_detected_with_cached_columns(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_cache, "KEPT_FROM", 1)
    monkeypatch.setattr(table_cache, "BULK", 3000)
    whole = load_table(study)
    runs = StudyFolder.open(study).runs()
    change(runs[3].path / "measurements.jsonl", "digit")
    runs[4].update(measured=None)
    change(runs[4].path / "measurements.jsonl", "middle row")
    change(runs[39].path / "measurements.jsonl", "file")
    bad = [runs[3].id, runs[4].id, runs[39].id]
    for _ in range(2):
        table = load_table(study)
        assert table.loc[table["status"] == "damaged", "run_id"].tolist() == bad
        good = table[~table["run_id"].isin(bad)].reset_index(drop=True)
        assert good.equals(whole[~whole["run_id"].isin(bad)].reset_index(drop=True))


def test_rows_of_a_run_without_a_stored_grid_are_not_checked_against_one() -> None:
    assert chain.misplaced({}, [(0, None), (7, None)]) == ""
    assert chain.misplaced({"config": {"training": {"steps": "x"}, "measure": {}}}, [(7, None)]) == ""
    assert (
        chain.misplaced({}, [(7, None), (7, 0.5), (7, None)]) == "measurements.jsonl has step 7 twice, in lines 1 and 3"
    )
    assert chain.misplaced({}, [(None, None)]) == "measurements.jsonl has a row whose step is blank, in line 1"
    record = {"status": "done", "config": {"training": {"steps": 25}, "measure": {"start": 10, "every": 10}}}
    assert chain.misplaced(record, [(0, None), (10, None), (20, None), (25, None), (25, 0.5), (25, 0.25)]) == ""
    assert "step 24, which is not" in chain.misplaced(record, [(0, None), (10, None), (20, None), (24, None)])


def fits_of(study: Path, table: Any) -> float:
    return forgetting.fit(table, "linear", dataset="news", bootstrap=0).parameters["c_fft"].value


@pytest.mark.full
def test_a_damaged_run_is_in_no_fit_report_or_comparison_and_each_names_it(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = next(run for run in StudyFolder.open(study).runs() if run.id.startswith("news-lora-r8-s1"))
    whole = load_table(study)
    right = fits_of(study, whole[whole["run_id"] != run.id])
    change(run.path / "measurements.jsonl", "digit")
    assert fits_of(study, study) == right != fits_of(study, whole)
    made = forgetting.fit(study, "linear", dataset="news", bootstrap=0)
    assert made.n_runs == 19
    assert f"1 row of runs that are not done was left out: {run.id} (damaged)" in made.warnings
    exported = study.parent / "t.csv"
    forgetting.table(study).to_csv(exported, index=False)
    assert fits_of(study, exported) == right

    result = conclude(study)
    assert list(result.left.damaged) == [run.id]
    assert result.fits["news"]["linear"].parameters["c_fft"].value == right
    assert f"damaged, left out: {run.id}: measurements.jsonl was changed" in str(result)
    assert result.to_dict()["damaged"][run.id].startswith("measurements.jsonl was changed")
    page = result.report.read_text()
    assert "39 runs done" in page or "runs done, 1 damaged" in page
    assert "measurements.jsonl was changed; it is not what was measured (6 rows)" in page

    code, out, err = command(capsys, "table", study, "--json")
    (row,) = [row for row in json.loads(out) if row["run_id"] == run.id]
    assert (code, row["status"], row["step"], row["forgetting_loss"]) == (0, "damaged", None, None)
    assert err.startswith(f"damaged, left out: {run.id}: measurements.jsonl was changed")
    code, out, err = command(capsys, "report", study, "--json")
    assert (code, list(json.loads(out)["damaged"])) == (0, [run.id])
    code, out, _ = command(capsys, "fit", study, "--law", "linear", "--dataset", "news", "--json", "--bootstrap", "0")
    assert any(run.id in warning for warning in json.loads(out)["warnings"])


def edit(study: Path, **changes: Any) -> None:
    import yaml

    file = study / "study.yaml"
    fields = parse_yaml(file.read_text(), "study.yaml")
    for name, value in changes.items():
        fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
    file.write_text(yaml.safe_dump(fields))


RANKS = [1, 2, 4, 16, 32, 64, 128, 256, 512]


@pytest.mark.full
def test_runs_that_an_edited_configuration_does_not_contain_are_marked(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If rank 8 is removed from study.yaml by hand, its four runs are in no fit."""
    whole = load_table(study)
    kept_ids = [run.id for run in StudyFolder.open(study).runs() if "-r8-" not in run.id]
    right = fits_of(study, whole[whole["run_id"].isin(kept_ids)])
    conclude(study)  # writes a fits.json of all runs
    edit(study, methods=[{"name": "lora", "rank": RANKS}])
    table = forgetting.table(study)
    gone = sorted(set(whole["run_id"]) - set(kept_ids))
    assert sorted(table.loc[table["status"] == "unasked", "run_id"].unique()) == gone
    assert table.drop(columns="status").equals(whole.drop(columns="status"))
    assert len(fitted_rows(table[table["status"] == "done"])) == 36 * 5

    assert fits_of(study, study) == right != fits_of(study, whole)
    laws = load_laws(study)  # these are what a plan and a prediction use
    assert laws["news"]["linear"].parameters["c_fft"].value == right
    message = f"2 runs that the configuration no longer asks for; left out: {', '.join(g for g in gone if 'news' in g)}"
    assert message in laws["news"]["linear"].warnings
    plan = forgetting.plan(study, budget=0.3, dataset="news")
    assert message in str(plan).replace("\n", " ")
    assert any(message == sentence for sentence in plan.to_dict()["news"]["sentences"])

    result = conclude(study)
    assert result.left.unasked == tuple(gone)
    assert result.fits["news"]["linear"].parameters["c_fft"].value == right
    assert f"4 runs that the configuration no longer asks for; left out of fits: {', '.join(gone)}" in str(result)
    page = result.report.read_text()
    assert "4 runs that the configuration no longer asks for; left out of fits, charts and the table above" in page
    assert f'data-key="{gone[0]}"' not in page
    assert load_laws(study)["news"]["linear"].n_runs == 18

    code, out, err = command(capsys, "table", study)
    assert (code, err) == (
        0,
        f"4 runs that the configuration no longer asks for; left out of fits: {', '.join(gone)}\n",
    )
    above, below = out.split("runs that the configuration no longer asks for (not used in fits):")
    assert above.count("\n") > below.count("\n") > 4 * 6
    code, out, _ = command(capsys, "table", study, "--json")
    assert {row["status"] for row in json.loads(out) if row["run_id"] in gone} == {"unasked"}
    code, out, _ = command(capsys, "report", study, "--json")
    assert json.loads(out)["unasked"] == gone


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"steps": 40}},
        {"measure": {"every": 5}},
        {"seeds": [2]},
        {"context": 64},
        {"text": {"source": "miniature:other"}},
        {"methods": [{"name": "lora", "rank": 3}]},
        {"methods": [{"name": "dora", "rank": 8}]},
        {"methods": [{"name": "lora", "rank": [1, 2, 4, 8, 16], "dropout": 0.1}]},
    ],
)
def test_any_edit_that_affects_numbers_excludes_the_stored_runs(study: Path, changes: dict[str, Any]) -> None:
    edit(study, **changes)
    assert set(read_study(study).table["status"]) == {"unasked"}
    with pytest.raises(
        ForgettingError,
        match="no usable measurement: 40 runs that the configuration no longer asks for; left out of fits",
    ):
        conclude(study)


@pytest.mark.parametrize(
    "changes",
    [{"name": "other"}, {"model": {"device": "cpu"}}, {"measure": {"batch_tokens": 64}}, {"seeds": [0, 1, 2]}],
)
def test_an_edit_that_affects_no_numbers_keeps_the_stored_runs(study: Path, changes: dict[str, Any]) -> None:
    edit(study, **changes)
    assert set(read_study(study).table["status"]) == {"done"}


@pytest.mark.full
def test_a_data_set_removed_from_the_configuration_is_not_compared_or_fitted(study: Path) -> None:
    edit(study, datasets={}, name="one")
    fields = parse_yaml((study / "study.yaml").read_text(), "x")
    del fields["datasets"]["news"]
    import yaml

    (study / "study.yaml").write_text(yaml.safe_dump(fields))
    result = conclude(study)
    assert list(result.fits) == ["instructions"]
    assert len(result.left.unasked) == 20
    assert forgetting.fit(study, "linear", bootstrap=0).label == "instructions"
    assert list(load_laws(study)) == ["instructions"]


def test_a_run_whose_folder_was_moved_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    run = RunFolder(tmp_path / "s" / "runs" / "r")
    with run.lock():
        run.update(status="running")
        run.keep_until(-1)
        run.append(ROWS[0])
        (tmp_path / "s").rename(tmp_path / "moved")
        for write in (lambda: run.append(ROWS[1]), lambda: run.update(status="done"), lambda: run.keep_until(0)):
            with pytest.raises(GoneError, match=r"r: deleted or moved during the run, which stops"):
                write()
        assert not (tmp_path / "s").exists()
        shutil.copytree(tmp_path / "moved", tmp_path / "s")  # a copy in its place is a different folder
        with pytest.raises(GoneError):
            run.append(ROWS[1])
    assert run.held_by() is None
    assert RunFolder(tmp_path / "moved" / "runs" / "r").measurements() == ROWS[:1]
    assert RunFolder(tmp_path / "none").held_by() is None
    assert not (tmp_path / "none").exists()


def test_only_leftovers_in_the_old_place_of_a_moved_study_are_deleted(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "s")
    run = study.path / "runs" / "r"
    (run / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (run / "lock").touch()
    (study.path / "cache").mkdir()
    (study.path / "cache" / "x.lock").touch()
    with pytest.raises(GoneError):
        study.check_there()
    assert not study.path.exists()
    with pytest.raises(GoneError), study.run("r").lock():
        pass
    assert not study.path.exists()
    (run / "checkpoints").mkdir(parents=True)
    (run / "thesis.tex").touch()
    with pytest.raises(GoneError):
        study.check_there()
    assert (run / "checkpoints").exists()
    (run / "thesis.tex").unlink()
    study.config_file.touch()
    study.check_there()
    assert (run / "checkpoints").exists()


def test_a_study_folder_without_its_configuration_can_be_resumed(study: Path, tmp_path: Path) -> None:
    config = StudyFolder.open(study).config()
    (study / "study.yaml").unlink()
    shutil.rmtree(StudyFolder(study).runs()[0].path)
    StudyFolder.create_or_resume(study, config)
    assert len(left(study)) == 1
    (study / "study.yaml").unlink()
    (study / "runs" / "events.out").touch()  # a folder `runs` that is not of a study
    with pytest.raises(UsageError, match="neither empty nor a study folder"):
        StudyFolder.create_or_resume(study, config)
    (tmp_path / "other" / "runs" / "x").mkdir(parents=True)
    with pytest.raises(UsageError, match="neither empty nor a study folder"):
        StudyFolder.create_or_resume(tmp_path / "other", config)


def test_the_base_models_row_alone_is_not_a_result(study: Path) -> None:
    """A run whose rows are lost never gives a zero."""
    run = StudyFolder.open(study).runs()[0]
    change(run.path / "measurements.jsonl", "file")
    row = load_table(study).set_index("run_id").loc[run.id]
    assert math.isnan(row["forgetting"])

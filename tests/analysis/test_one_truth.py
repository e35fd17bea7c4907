"""A study's rows give the same fit from the folder, its CSV, JSON or Parquet, a DataFrame, and Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import forgetting
from forgetting.analysis.sources import tables_to_fit
from forgetting.cli.app import app
from forgetting.errors import UsageError
from forgetting.store.folder import StudyFolder
from forgetting.store.table import load_table, records
from scale_study import make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic study of two data sets with different laws, a second method, and rows before `measure.start`."""
    path = tmp_path_factory.mktemp("truth") / "s"
    make(path, 12, measurements=10, start=30)
    other = StudyFolder.open(path).runs()[0]
    strange = path / "runs" / other.id.replace("-lora-", "-other-")
    shutil.copytree(other.path, strange)
    run = json.loads((strange / "run.json").read_text())
    (strange / "run.json").write_text(json.dumps({**run, "run_id": strange.name, "label": "other"}))
    return path


def test_every_input_gives_the_same_rows(folder: Path, tmp_path: Path) -> None:
    frame = load_table(folder)
    assert set(frame["measure_start"]) == {30}
    assert (frame["step"] < 30).any()
    frame.to_csv(tmp_path / "pandas.csv", index=False)
    result = CliRunner().invoke(app, ["table", str(folder), "--csv"])
    (tmp_path / "command.csv").write_text(result.stdout)
    frame.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records(frame)))
    read = pd.read_csv(tmp_path / "pandas.csv", float_precision="round_trip")  # pandas 2 is less exact by default
    ways = [folder, frame, *sorted(tmp_path.iterdir()), records(frame), read]
    assert len(ways) == 8
    expected = tables_to_fit(folder, only={}).plain
    assert len(expected) >= 1
    for way in ways:
        found = tables_to_fit(way, only={}).plain
        assert list(found) == list(expected)
        for name, table in expected.items():
            for column in ("step", "finetune_loss", "forgetting_loss", "trainable_params"):
                values = np.asarray(found[name][column], dtype=float)
                assert np.array_equal(values, np.asarray(table[column], dtype=float)), (way, column)
            assert float(np.min(np.asarray(found[name]["step"], dtype=float))) >= 30
            assert list(found[name]["run_id"]) == list(table["run_id"])
            assert not any("other" in str(run) for run in found[name]["run_id"])


def test_the_command_and_python_fit_the_same_line(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["table", str(folder), "--csv"])
    csv = tmp_path / "t.csv"
    csv.write_text(result.stdout)
    name = next(iter(tables_to_fit(folder, only={}).plain))
    values = {
        forgetting.fit(way, "linear", dataset=name, bootstrap=0).parameters["c_fft"].value for way in (folder, csv)
    }
    for way in (folder, csv):
        found = CliRunner().invoke(app, ["fit", str(way), "--law", "linear", "--bootstrap", "0", "--json"])
        assert found.exit_code == 0, found.output
        (fit,) = [one for one in json.loads(found.stdout)["fits"] if one["label"] == name]
        values.add(fit["parameters"]["c_fft"]["value"])
    assert len(values) == 1


def test_rows_may_be_chosen_otherwise(folder: Path) -> None:
    every = tables_to_fit(folder, only={"label": "other"}, from_step=0).plain
    (table,) = every.values()
    assert set(table["label"]) == {"other"}
    assert 0 in set(table["step"])
    with pytest.raises(UsageError, match="row 1, column 'step': 'x' is not a number"):
        tables_to_fit(load_table(folder).astype({"step": object}).assign(step="x"), only={})


def test_a_column_dropped_changes_no_fit(folder: Path) -> None:
    frame = load_table(folder)
    expected = tables_to_fit(frame, only={"label": frame["reference"].iloc[0]}).plain
    for columns in (["alpha"], ["mitigation"], ["alpha", "mitigation"]):
        found = tables_to_fit(frame.drop(columns=columns), only={"label": frame["reference"].iloc[0]}).plain
        for name, table in expected.items():
            assert found[name]["step"].tolist() == table["step"].tolist(), columns


def test_the_same_rows_twice_are_refused(folder: Path, tmp_path: Path) -> None:
    load_table(folder).to_csv(tmp_path / "t.csv", index=False)
    name = next(iter(tables_to_fit(folder, only={}).plain))
    with pytest.raises(UsageError, match="are the same run and step"):
        forgetting.fit([folder, tmp_path / "t.csv"], "linear", dataset=name, bootstrap=0)


def test_no_row_left_gives_a_one_line_error(folder: Path) -> None:
    for start in (10_000, float("nan")):
        with pytest.raises(UsageError, match="has no row to fit from step"):
            forgetting.fit(folder, "linear", from_step=start)
    name = next(iter(tables_to_fit(folder, only={}).plain))
    with pytest.raises(UsageError, match="no column 'nope' that says which rows belong to one run; "):
        forgetting.fit(folder, "linear", dataset=name, run="nope")
    frame = load_table(folder)
    with pytest.raises(UsageError, match="table: column 'step' occurs twice"):
        forgetting.fit(pd.concat([frame, frame[["step"]]], axis=1), "linear")
    with pytest.raises(UsageError, match="seed: got -1; give a whole number of 0 or more"):
        forgetting.fit(folder, "linear", dataset=name, seed=-1)


@pytest.mark.full
def test_a_table_of_one_rank_determines_no_surface() -> None:
    rng = np.random.default_rng(0)
    runs, steps = (cells.ravel() for cells in np.indices((6, 10)))
    x = (2e4 / 1e5) ** 0.4 + (30 / (10 * (steps + 1))) ** 0.5
    noise = rng.normal(0, 0.002, (2, x.size))
    table = {"run_id": runs, "trainable_params": np.full(x.size, 1e5), "step": 10 * (steps + 1)}
    table |= {"finetune_loss": 1 + 0.5 * x + noise[0], "forgetting_loss": 2 - 0.3 * x + noise[1]}
    fit = forgetting.fit(table, "shifted_power", bootstrap=60)
    assert {e.identified for name, e in fit.parameters.items() if name not in ("c_ft", "c_fft")} == {"none"}
    assert all(np.isnan([e.low, e.high]).all() for e in fit.parameters.values() if e.identified == "none")
    few = forgetting.fit(table, "linear", bootstrap=5)
    assert any("5 resamples are too few" in w for w in few.warnings)
    assert np.isnan(few.parameters["c_fft"].low)


def test_plan_arguments_out_of_range_are_refused() -> None:
    law = "kalajdzievski2024/openorca"
    for wrong, says in (
        ({"budget": 0.1, "floor": float("nan")}, "floor: got nan"),
        ({"budget": 0.1, "floor": -1.0}, "floor: got -1.0"),
        ({"budget": 0.1, "batch": -2.0, "context": 5.0}, "batch: got -2.0"),
        ({"budget": 0.1, "max_steps": 0.0}, "max_steps: got 0.0"),
        ({"budget": 0.1, "ranks": [3], "params": [1000.0]}, "give ranks or trainable parameters"),
        ({"target_loss": -1.0}, "target_loss: got -1.0"),
    ):
        with pytest.raises(UsageError, match=says):
            forgetting.plan(law, **wrong)
    (made,) = forgetting.plan(law, target_loss=100.0).values()
    assert "below a fine-tuning loss of 100 from the first step on" in made.sentences[0]
    with pytest.raises(UsageError, match="trainable_params is 0 where a positive number is needed"):
        forgetting.predict(law, ranks=[0], steps=10)

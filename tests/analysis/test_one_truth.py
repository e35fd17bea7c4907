"""A study's rows give one fit, whichever way they come: the folder, its CSV, JSON or Parquet, a DataFrame, Python."""

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
from forgetting.config.files import parse_yaml
from forgetting.errors import UsageError
from forgetting.files import dump_yaml
from forgetting.store.folder import StudyFolder
from forgetting.store.table import load_table, records
from scale_study import make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up study of two data sets whose laws differ, with a second method and rows before `measure.start`."""
    path = tmp_path_factory.mktemp("truth") / "s"
    make(path, 12, measurements=10)
    fields = parse_yaml((path / "study.yaml").read_text(), where="study")
    fields["measure"]["start"] = 30
    (path / "study.yaml").write_text(dump_yaml(fields))
    other = StudyFolder.open(path).runs()[0]
    strange = path / "runs" / f"{other.id}-other"
    shutil.copytree(other.path, strange)
    run = json.loads((strange / "run.json").read_text())
    (strange / "run.json").write_text(json.dumps({**run, "run_id": strange.name, "label": "other"}))
    return path


def test_every_way_in_gives_the_same_rows(folder: Path, tmp_path: Path) -> None:
    frame = load_table(folder)
    assert set(frame["measure_start"]) == {30}
    assert (frame["step"] < 30).any()
    frame.to_csv(tmp_path / "pandas.csv", index=False)
    shown = CliRunner().invoke(app, ["table", str(folder), "--csv"])
    (tmp_path / "command.csv").write_text(shown.stdout)
    frame.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records(frame)))
    ways = [folder, frame, *sorted(tmp_path.iterdir()), records(frame), pd.read_csv(tmp_path / "pandas.csv")]
    assert len(ways) == 8
    wanted = tables_to_fit(folder, only={})
    assert len(wanted) >= 1
    for way in ways:
        found = tables_to_fit(way, only={})
        assert list(found) == list(wanted)
        for name, table in wanted.items():
            for column in ("step", "finetune_loss", "forgetting_loss", "trainable_params"):
                ours = np.asarray(found[name][column], dtype=float)
                assert np.array_equal(ours, np.asarray(table[column], dtype=float)), (way, column)
            assert float(np.min(np.asarray(found[name]["step"], dtype=float))) >= 30
            assert list(found[name]["run_id"]) == list(table["run_id"])
            assert not any("other" in str(run) for run in found[name]["run_id"])


def test_the_command_and_python_fit_the_same_line(folder: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["table", str(folder), "--csv"])
    csv = tmp_path / "t.csv"
    csv.write_text(shown.stdout)
    name = next(iter(tables_to_fit(folder, only={})))
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
    every = tables_to_fit(folder, only={"label": "other"}, from_step=0)
    (table,) = every.values()
    assert set(table["label"]) == {"other"}
    assert 0 in set(table["step"])
    with pytest.raises(UsageError, match="row 1, column 'step': 'x' is not a number"):
        tables_to_fit(load_table(folder).astype({"step": object}).assign(step="x"), only={})

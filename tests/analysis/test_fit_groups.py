"""`fit --by`: each group's fit uses only its own rows, and a group that cannot be fitted has a reason."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import forgetting
from forgetting.analysis.fit import load_fits
from forgetting.cli import laws
from forgetting.errors import ForgettingError, UsageError

app = typer.Typer(pretty_exceptions_enable=False)
for name, command in (("fit", laws.fit_command), ("predict", laws.predict_command)):
    app.command(name)(command)
LAW = "loss = E + A*D**(-0.5)"
D = 100.0 * 2.0 ** np.arange(10)


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = []
    for model, task, scale in (("gpt", "wmt", 20.0), ("gpt", "flan", 40.0), ("t5", "wmt", 60.0)):
        loss = 1.5 + scale * D**-0.5 + rng.normal(0, 0.01, D.size)
        parts.append(pd.DataFrame({"model": model, "task": task, "D": D, "loss": loss}))
    return pd.concat([*parts, pd.DataFrame({"model": ["bad"], "task": ["wmt"], "D": [1.0], "loss": [2.0]})])


def test_each_group_is_fitted_by_itself():
    table = frame()
    made = forgetting.fit(table, LAW, by=["model", "task"], bootstrap=50)
    alone = forgetting.fit(table, LAW, only={"model": "gpt", "task": "flan"}, bootstrap=50)
    assert [g.cells for g in made.groups] == [("gpt", "wmt"), ("gpt", "flan"), ("t5", "wmt"), ("bad", "wmt")]
    assert made.groups[1].fit is not None
    assert made.groups[1].fit.parameters == alone.parameters
    assert list(made.fits) == ["model=gpt, task=wmt", "model=gpt, task=flan", "model=t5, task=wmt"]
    listed = made.to_frame()
    assert listed["A"][:3].tolist() == pytest.approx([20, 40, 60], rel=0.02)
    assert listed["n_points"].tolist() == [10, 10, 10, 1]
    part = table[(table["model"] == "gpt") & (table["task"] == "flan")]
    residual = part["loss"] - alone.parameters["E"].value - alone.parameters["A"].value * part["D"] ** -0.5
    assert listed["rmse_loss"][1] == pytest.approx(np.sqrt(np.mean(residual**2)))
    assert listed["reason"].tolist()[:3] == ["", "", ""]
    assert f"has 1 measured value; law '{LAW}' has 2 free parameters" in listed["reason"][3]
    assert "3 of 4 groups fitted" in str(made)
    predicted = forgetting.predict(made, at={"D": 400.0}, dataset="model=gpt, task=flan").to_frame()
    assert predicted["loss"][0] == pytest.approx(float(alone.predict("loss", D=400.0).value))


def test_a_table_of_columns_gives_the_same_groups():
    table = frame()
    columns = {name: table[name].tolist() for name in table.columns}
    one, other = (forgetting.fit(t, LAW, by="model", bootstrap=0).to_frame() for t in (table, columns))
    pd.testing.assert_frame_equal(one, other)


def test_data_sets_are_groups_too():
    table = frame().rename(columns={"task": "dataset"})
    made = forgetting.fit(table, LAW, by="model", bootstrap=0)
    assert made.by == ("dataset", "model")
    assert [g.cells for g in made.groups] == [("flan", "gpt"), ("wmt", "gpt"), ("wmt", "t5"), ("wmt", "bad")]


def test_if_no_group_can_be_fitted_the_first_groups_error_is_raised():
    table = frame()
    with pytest.raises(UsageError, match="table 'model=gpt' has no column 'N'"):
        forgetting.fit(table, "chinchilla", by="model")
    with pytest.raises(UsageError, match=r"no column 'modle' to group by; did you mean 'model'\?"):
        forgetting.fit(table, LAW, by="modle")
    table["model"] = None
    with pytest.raises(UsageError, match=r"no row that names its group \(row 1, column 'model': blank\)"):
        forgetting.fit(table, LAW, by="model")


def test_the_command_prints_a_row_per_group_and_continues_after_a_failure(tmp_path):
    path = tmp_path / "curves.csv"
    frame().to_csv(path, index=False)
    arguments = ["fit", str(path), "--law", LAW, "--by", "model", "--by", "task", "--bootstrap", "0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    rows = [line.split() for line in lines if line.startswith(("gpt ", "t5 ", "bad "))]
    assert [row[:3] for row in rows] == [
        ["gpt", "wmt", "10"],
        ["gpt", "flan", "10"],
        ["t5", "wmt", "10"],
        ["bad", "wmt", "1"],
    ]
    assert "not fitted because" in result.stdout
    out = json.loads(CliRunner().invoke(app, [*arguments, "--json", "--out", str(tmp_path / "fits.json")]).stdout)
    assert [f["group"] for f in out["fits"]][1] == {"model": "gpt", "task": "flan"}
    assert out["fits"][2]["parameters"]["A"]["value"] == pytest.approx(60, rel=0.02)
    assert [f["group"]["model"] for f in out["failed"]] == ["bad"]
    assert out["failed"][0]["reason"].startswith("'model=bad, task=wmt' has 1 measured value")
    stored = load_fits(tmp_path / "fits.json")["model=t5, task=wmt"]
    assert stored["custom"].parameters["A"].value == out["fits"][2]["parameters"]["A"]["value"]


def test_the_command_fails_if_no_group_can_be_fitted(tmp_path):
    path = tmp_path / "curves.csv"
    frame().tail(1).to_csv(path, index=False)
    result = CliRunner().invoke(app, ["fit", str(path), "--law", LAW, "--by", "model"])
    assert isinstance(result.exception, ForgettingError)
    for option in ("--extrapolate", "--latex"):
        refused = CliRunner().invoke(app, ["fit", str(path), "--law", LAW, "--by", "model", option])
        assert "--by does not go with --extrapolate or --latex" in str(refused.exception)


def test_warnings_beyond_the_first_few_are_counted():
    made = forgetting.fit(frame(), LAW, by=["model", "task"], bootstrap=0)
    fits = [group.fit for group in made.groups if group.fit is not None]
    fits[0].warnings[:] = [f"warning {i}" for i in range(9)]
    for fit in fits[1:]:
        fit.warnings.clear()
    assert "1 more warning in the fits themselves (--json)" in str(made)

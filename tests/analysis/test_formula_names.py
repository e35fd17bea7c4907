"""Whether names in a formula are columns, parameters or constants, and that the output says so."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import forgetting
from forgetting.analysis.fit import load_fits
from forgetting.analysis.laws import FormulaLaw
from forgetting.analysis.tables import read_table
from forgetting.cli import laws
from forgetting.errors import UsageError

app = typer.Typer(pretty_exceptions_enable=False)
app.command("fit")(laws.fit_command)
app.command("predict")(laws.predict_command)

STEP = np.array([1.0, 2, 3, 4, 5, 6])
LR = np.array([3.0, 1, 2, 5, 4, 9])
TABLE = {"Step": STEP, "lr": LR, "Value": 1 + 2 * LR + 0.5 * STEP}


@pytest.mark.parametrize("name", ["Step", "step"])
@pytest.mark.parametrize("kind", ["file", "frame", "columns"])
def test_a_formula_finds_columns_under_the_files_own_name_and_ours(tmp_path, kind, name):
    table = {"file": tmp_path / "t.csv", "frame": pd.DataFrame(TABLE), "columns": TABLE}[kind]
    if kind == "file":
        pd.DataFrame(TABLE).to_csv(table, index=False)
    fit = forgetting.fit(table, f"Value = a + b*lr + c*{name}", bootstrap=0)
    assert [e.value for e in fit.parameters.values()] == pytest.approx([1, 2, 0.5])
    assert f"read as: columns lr, {name}; fitted a, b, c" in str(fit)


def test_mlflows_columns_keep_their_own_names(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("Name,metrics.loss,params.x\na,1,1\na,2,2\nb,3,3\n")
    table = read_table(path)
    assert table["metrics.loss"] == table["loss"] == ["1", "2", "3"]
    assert table["Name"] == table["run_id"] == ["a", "a", "b"]
    fit = forgetting.fit(path, "y = a + b*x", columns={"y": "metrics.loss"}, bootstrap=0)
    assert fit.parameters["b"].value == pytest.approx(1)


def test_constants_and_columns_named_as_parameters_are_reported():
    x = np.arange(1.0, 7)
    fit = forgetting.fit({"x": x, "y": math.pi * x + 3}, "y = pi*x + e", bootstrap=0)
    assert fit.parameters["e"].value == pytest.approx(3)
    assert "read as: columns x; fitted e; pi is 3.14159" in str(fit)
    column = forgetting.fit({"x": x, "pi": x**2, "y": 2 * x**2 + 3}, "y = b*pi + e", bootstrap=0)
    assert column.parameters["b"].value == pytest.approx(2)
    assert "read as: columns pi; fitted b, e" in str(column)
    again = FormulaLaw.from_spec(column.spec)
    assert (again.variable_names, again.names) == (("pi",), ("b", "e"))
    own = forgetting.fit({"x": x, "y": 2 * x + 3}, "y = pi*x + e", start={"pi": 1.0}, bootstrap=0)
    assert own.parameters["pi"].value == pytest.approx(2)
    grouped = forgetting.fit({"x": [*x, *x], "a": [1.0] * 12, "y": [*x, *x], "g": ["p"] * 6 + ["q"] * 6}, "y = a*b*x",
                             by="g", bootstrap=0)  # fmt: skip
    assert "read as: columns a, x; fitted b" in str(grouped)


@pytest.mark.parametrize(
    ("formula", "options", "says"),
    [
        ("y = a", {}, "it is a constant, not a law; possible columns: x, z$"),
        ("y = a + b*t", {}, "none of a, b, t is a column; possible columns: x, z$"),
        ("y = a*x", {"start": {"x": 1.0}}, "x was given a start or bounds"),
        (
            "y = a + lambda*x",
            {},
            "'lambda' is a reserved word of Python and cannot name a parameter; write lambda_",
        ),
    ],
)
def test_invalid_formulas_are_explained(formula, options, says):
    with pytest.raises(UsageError, match=says):
        forgetting.fit({"x": [1, 2, 3], "y": [1, 2, 3], "z": [1, 2, 3]}, formula, **options)


@pytest.mark.parametrize(
    ("formula", "x", "says"),
    [
        (
            "y = a + b*x**-c",
            [3, "", 0, 1, 2, 4],
            r"row 3 \(x = 0\): law 'y = a \+ b\*x\*\*-c' could not be evaluated there",
        ),
        ("y = a + b*log(x)", [1, 2, 3, -4, 5, 6], r"row 4 \(x = -4\)"),
        ("y = a + b*sqrt(x)", [1, 2, 3, 5, 6, -4], r"row 6 \(x = -4\)"),
    ],
)
def test_the_row_at_which_a_formula_has_no_value_is_named(formula, x, says):
    with pytest.raises(UsageError, match=says):
        forgetting.fit({"x": x, "y": [1, 2, 3, 4, 5, 7]}, formula, bootstrap=0)


def test_several_formulas_are_distinguished(tmp_path):
    path, out = tmp_path / "t.csv", tmp_path / "fits.json"
    rng = np.random.default_rng(0)
    D = np.geomspace(1, 100, 12)
    y = 2 + 3 / D + rng.normal(0, 0.01, 12)
    pd.DataFrame({"D": D, "y": y, "g": ["p", "q"] * 6}).to_csv(path, index=False)
    formulas = ["y = a + b/D", "y = a + b*D"]
    options = ["--law", formulas[0], "--law", formulas[1], "--bootstrap", "0"]
    output = CliRunner().invoke(app, ["fit", str(path), *options, "--extrapolate"]).stdout
    which, tests = output.split("which law?")[1].split("extrapolation")
    for part in (which, tests):
        assert "custom" not in part
        assert all(formula in part for formula in formulas)
    CliRunner().invoke(app, ["fit", str(path), *options, "--by", "g", "--out", str(out)])
    assert {group: list(fits) for group, fits in load_fits(out).items()} == {"g=p": formulas, "g=q": formulas}

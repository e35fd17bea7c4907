"""`forgetting fit`, `predict` and `plan` on the command line."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import typer
from test_fit_engine import points
from test_fit_table1 import NAMES, PER_RANK, table
from typer.testing import CliRunner

import forgetting
from forgetting.analysis.fit import fit_law, load_fits, unfit
from forgetting.analysis.sources import tables_to_fit
from forgetting.cli import laws
from forgetting.errors import UsageError

app = typer.Typer(pretty_exceptions_enable=False)
for name, command in (("fit", laws.fit_command), ("predict", laws.predict_command), ("plan", laws.plan_command)):
    app.command(name)(command)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "runs.csv"
    table(NAMES[0], noise=0.004, dataset="orca").assign(forgetting_floor=0.5).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def chinchilla(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "c.csv"
    t = points(100)
    rows = zip(*(t[k].tolist() for k in ("N", "D", "loss")), strict=True)
    path.write_text("params,tokens,loss\n" + "\n".join(",".join(map(repr, row)) for row in rows) + "\n")
    return path


@pytest.mark.parametrize("change", [{"status": "failed"}, {"trainable_params": ""}, {"trainable_params": "39976960.0"}])
def test_a_law_over_ranks_needs_three_that_count(tmp_path, change):
    rows = table(NAMES[0], dataset="orca").query("rank in (8, 16, 32)").astype(object)
    assert unfit(rows) == ""
    for name, value in change.items():
        rows.loc[rows["rank"] == 32, name] = value
    if change.get("trainable_params"):
        rows.loc[rows["rank"] == 16, "trainable_params"] = 39976960
    rows.to_csv(tmp_path / "runs.csv", index=False)
    why = "it needs at least 3 different values of trainable_params (such as ranks), but the table has 2"
    assert unfit(rows) == unfit(rows.to_dict("list")) == why
    found = tables_to_fit([tmp_path / "runs.csv"], only={})
    assert laws._default_laws("orca", found.plain["orca"], found, {}) == ["linear"]


def test_json_of_one_fit_is_the_fit(chinchilla):
    options = ("--law", "chinchilla", "--objective", "huber-log", "--delta", "1e-3", "--map", "N=params")
    out = json.loads(run("fit", chinchilla, *options, "--map", "D=tokens", "--json"))
    fit = fit_law("chinchilla", points(100), objective="huber-log")
    assert list(out["parameters"]) == ["E", "A", "B", "alpha", "beta"]
    for k, e in fit.parameters.items():
        assert out["parameters"][k] == {
            "value": pytest.approx(e.value),
            "low": pytest.approx(e.low),
            "high": pytest.approx(e.high),
            "identified": e.identified,
        }
    assert out["objective"] == "huber-log"
    assert out["objective_value"] == pytest.approx(fit.objective_value)
    assert any("names no runs" in w for w in out["warnings"])
    assert "draws" not in out


def test_a_formula_is_a_law(chinchilla):
    formula = "loss = E + A/params**alpha + B/tokens**beta"
    out = json.loads(run("fit", chinchilla, "--law", formula, "--bootstrap", 0, "--json"))
    fit = fit_law("chinchilla", points(100), bootstrap=0)
    assert out["objective_value"] == pytest.approx(fit.objective_value, rel=1e-9)
    bounded = run("fit", chinchilla, "--law", formula, "--bound", "alpha=0:0.1", "--bootstrap", 0, "--json")
    assert json.loads(bounded)["parameters"]["alpha"]["value"] == 0.1


@pytest.mark.full
def test_a_studys_table_gets_both_laws_and_a_plan(csv, tmp_path):
    result = run("fit", csv, "--out", tmp_path / "fits.json", "--extrapolate", "--bootstrap", 40)
    assert "Forgetting is linear in the fine-tuning loss: orca" in result
    assert "orca: which law?" in result
    assert "extrapolation" in result
    fits = load_fits(tmp_path / "fits.json")["orca"]
    assert list(fits) == ["linear", "shifted_power"]
    rows = json.loads(run("predict", tmp_path / "fits.json", "--rank", 8, "--rank", 16, "--steps", 2000, "--json"))
    expected = fits["shifted_power"].predict("forgetting_loss", trainable_params=PER_RANK * 16, step=2000)
    assert rows[1]["forgetting_loss"]["value"] == pytest.approx(float(expected.value))
    assert rows[1]["extrapolated"] is True
    assert "outside the measured range" in run("predict", tmp_path / "fits.json", "--rank", 8, "--steps", 2000)
    line = json.loads(run("predict", tmp_path / "fits.json", "--set", "finetune_loss=0.7", "--json"))
    assert line[0]["law"] == "linear"
    plan = json.loads(run("plan", tmp_path / "fits.json", "--budget", 0.3, "--next-run", "--json"))
    assert plan["level"] == pytest.approx(0.8)
    assert plan["best"]["rank"] in (8, 16, 32, 64, 128, 256)
    assert len(plan["next_runs"]) == len(plan["frontier"])


def test_several_fits_are_listed_with_their_comparison(csv):
    out = json.loads(run("fit", csv, "--law", "linear", "--law", "shifted_power_f", "--bootstrap", 0, "--json"))
    assert [f["law"] for f in out["fits"]] == ["linear", "shifted_power_f"]
    assert {r["law"] for r in out["comparison"]["orca"]} == {"linear", "shifted_power_f"}


def test_a_table_of_one_rank_gets_the_line_and_says_why(csv, tmp_path):
    result = run("fit", csv, "--only", "rank=8", "--bootstrap", 0, "--out", tmp_path / "one.json")
    assert "Forgetting is linear" in result
    assert "Shifted power laws" not in result
    with pytest.raises(UsageError, match=r"only the line between the two losses \(Eq\. 4\)"):
        run("plan", tmp_path / "one.json", "--budget", 0.1)
    asked = json.loads(run("fit", csv, "--only", "rank=8", "--law", "shifted_power", "--bootstrap", 0, "--json"))
    assert any("fewer than 3 different values of trainable_params" in w for w in asked["warnings"])


def test_rows_can_be_chosen(csv):
    out = json.loads(run("fit", csv, "--law", "linear", "--only", "rank=8", "--from-step", 160, "--json"))
    assert out["n_points"] == 11
    assert out["n_runs"] == 1


def test_plan_on_a_published_law():
    out = json.loads(run("plan", NAMES[0], "--budget", 0.85, "--json"))
    assert out["frontier"][0]["tokens"] == pytest.approx(out["frontier"][0]["steps"]["value"] * 32 * 512)
    assert out["frontier"][0]["flops"] is None
    assert any("no choice of rank and steps helps" in s for s in out["sentences"])
    result = run("plan", NAMES[0], "--target-loss", 0.5)
    assert "the law's limit is 0.6126" in result


def test_each_of_several_laws_uses_its_part_of_the_map(chinchilla):
    formulas = ("--law", "loss = E + A*n", "--law", "loss = E + A*d", "--map", "n=params", "--map", "d=tokens")
    fits = json.loads(run("fit", chinchilla, *formulas, "--bootstrap", "0", "--iid", "--json"))["fits"]
    assert [list(fit["measured_range"]) for fit in fits] == [["n"], ["d"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fit", "nowhere.csv"), "no such file"),
        (("fit", "CHINCHILLA"), "which law"),
        (("fit", "CHINCHILLA", "--law", "chincilla"), "did you mean 'chinchilla'"),
        (("fit", "CHINCHILLA", "--law", "E + A/params**alpha"), "a formula must name its output"),
        (("fit", "CHINCHILLA", "--law", "loss = E + A*tokns"), "has no variable"),
        (("fit", "CHINCHILLA", "--law", "chinchilla", "--map", "N"), "give NAME=VALUE"),
        (("fit", "CHINCHILLA", "--law", "chinchilla", "--map", "M=params"), "law 'chinchilla' has no such name"),
        (("fit", "CHINCHILLA", "--law", "chinchilla", "--map", "N=parms"), "did you mean 'params'"),
        (("fit", "CHINCHILLA", "--law", "chinchilla", "--bound", "alpha=0:1"), "are only for formulas"),
        (("fit", "CHINCHILLA", "--law", "loss = E*params", "--bound", "E=1"), "write NAME=LOW:HIGH"),
        (("fit", "CHINCHILLA", "--law", "loss = E*params", "--start", "E=x"), "'x' is not a number"),
        (("predict", "kalajdzievski2024/openorca", "--rank", "8"), "also needs step"),
        (("predict", "kalajdzievski2024/openorca", "--rank", "8", "--set", "step=x"), "'x' is not a number"),
        (("predict", "besiroglu2024/chinchilla", "--set", "N=1e9"), "also needs D"),
        (("predict", "openorca", "--rank", "8", "--steps", "1"), "neither a published law"),
        (("predict", "kalajdzievski2024/news", "--rank", "8", "--params", "9", "--steps", "1"), "not both"),
        (("predict", "kalajdzievski2024/news", "--law", "linear", "--steps", "1"), "no law 'linear' here"),
        (("plan", "kalajdzievski2024/openorca"), "give either --budget or --target-loss"),
        (("plan", "kalajdzievski2024/news", "--budget", "1", "--target-loss", "2"), "give either"),
        (("plan", "kalajdzievski2024/news", "--budget", "-1"), "must be a positive number"),
        (("plan", "kalajdzievski2024/news", "--budget", "1", "--target-modules", "q_proj"), "needs a model"),
        (("plan", "besiroglu2024/chinchilla", "--budget", "1"), "a plan needs law 'shifted_power'"),
        (("plan", "kalajdzievski2024/news", "--budget", "1", "--next-run"), "needs a law fitted to several runs"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, says, chinchilla):
    with pytest.raises(UsageError, match=says) as caught:
        run(*(chinchilla if a == "CHINCHILLA" else a for a in arguments))
    assert "\n" not in str(caught.value)


def test_two_points_give_no_goodness_of_fit():
    found = forgetting.fit({"finetune_loss": [1.0, 2.0], "forgetting_loss": [2.0, 1.0]}, "linear", bootstrap=0)
    assert math.isnan(found.r2["forgetting_loss"])
    assert "R2: forgetting_loss - (as many parameters as measured values" in str(found)


def test_two_outputs_at_few_points_have_a_goodness_of_fit():
    rows = table(NAMES[0])
    rows = rows[rows["rank"].isin(rows["rank"].unique()[:3]) & rows["step"].isin(rows["step"].unique()[:3])]
    found = forgetting.fit(rows, "shifted_power", bootstrap=0)
    assert found.n_points <= len(found.parameters)
    assert found.r2["forgetting_loss"] > 0.99
    assert "every law fits" not in str(found)


def test_a_data_set_too_small_to_extrapolate_leaves_the_fits_of_all(tmp_path):
    rows = table(NAMES[0], noise=0.004, dataset="orca")
    few = rows.query("step in (50, 110) and rank in (8, 16)").assign(dataset="small")
    pd.concat([rows, few]).to_csv(tmp_path / "runs.csv", index=False)
    given = ["fit", str(tmp_path / "runs.csv"), "--law", "linear", "--bootstrap", "0", "--extrapolate"]
    result = CliRunner().invoke(app, given)
    assert "'small' has no axis" in str(result.exception)
    assert "Forgetting is linear in the fine-tuning loss: small" in result.stdout
    assert "extrapolation" in result.stdout

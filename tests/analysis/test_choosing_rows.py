"""Filters on rows: numbers compared by value, several values of one column, blank cells, repeated options."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import forgetting
from forgetting.analysis.compare.reference import reference_of
from forgetting.analysis.tables import split, split_frame
from forgetting.cli import laws
from forgetting.errors import UsageError

app = typer.Typer(pretty_exceptions_enable=False)
app.command("fit")(laws.fit_command)

TABLE = {
    "model": ["a", "b", "", "c", "a", "b"],
    "rank": ["8", "16", "4", "128", "8.0", "16"],
    "k": ["True", "false", "true", "False", "TRUE", "true"],
    "tokens": ["800000", "8e5", "1000000", "1e6", "2000000", "2e6"],
    "id": ["1", "01", "001", "2", "3", "4"],
}


def picked(**only):
    """The remaining rows, equal from columns and from a DataFrame."""
    table = TABLE | {"at": list(range(6))}
    (plain,) = split(table, "t", only).values()
    (frame,) = split_frame(pd.DataFrame(table), only, label="t").values()
    assert plain["at"] == frame["at"].tolist()
    return plain["at"]


def test_numbers_and_booleans_are_compared_by_value_and_several_values_are_combined():
    assert picked(rank="8.0") == picked(rank=8) == picked(rank="8") == [0, 4]
    assert picked(rank=["8", 128]) == [0, 3, 4]
    assert picked(k="true") == picked(k=True) == [0, 2, 4, 5]
    assert picked(tokens="8e5") == [0, 1]
    assert picked(id="1") == [0]  # 01 and 001 are different names
    assert picked(model=["a", "c"], rank=8) == [0, 4]


def test_long_whole_numbers_are_compared_exactly():
    names = [1764246000000000001, 1764246000000000002]
    for cells in (names, [str(name) for name in names]):
        rows = {"run_id": [str(cell) for cell in cells for _ in range(3)], "rank": [float(i) for i in range(6)]}
        rows |= {"id": [cell for cell in cells for _ in range(3)]}
        assert split(rows, "t", {"id": cells[1]})["t"]["rank"] == [3, 4, 5]
        assert reference_of({"id": cells[1]}, {"t": rows | {"label": ["a"] * 6}}).rows(rows) == [False] * 3 + [True] * 3


@pytest.mark.parametrize("blank", [None, float("nan"), pd.NA, ""])
def test_a_reference_is_chosen_by_blank_cells(blank):
    table = {"label": ["a"] * 3, "mitigation": ["kl", blank, "replay"]}
    for value in (None, float("nan"), ""):
        assert reference_of({"mitigation": value}, {"t": table}).rows(table) == [False, True, False]


@pytest.mark.parametrize("kind", [list, tuple, set, np.array])
def test_a_reference_takes_several_values_as_only_does(kind):
    table = {"label": ["a"] * 3, "rank": [8, 16, 32]}
    assert reference_of({"rank": kind([8, 32])}, {"t": table}).rows(table) == [True, False, True]
    with pytest.raises(UsageError, match=r"reference\['rank'\]: it has no value"):
        reference_of({"rank": kind([])}, {"t": table})


@pytest.mark.parametrize("blank", [None, float("nan"), pd.NA, ""])
def test_blank_cells_match_no_filter(blank):
    columns = {"model": ["a", blank, "b"], "rank": [8.0, 8.0, 16.0], "x": [0, 1, 2]}
    for table in (columns, pd.DataFrame(columns)):
        cut = split if table is columns else split_frame
        for value in (None, float("nan")):
            (left,) = cut(table, only={"model": value}, label="t").values()
            assert list(left["x"]) == [1]
        with pytest.raises(UsageError, match=r"no row has model 'zz'; choices: .*a, b"):
            cut(table, only={"model": "zz"}, label="t")
        with pytest.raises(UsageError, match=r"no row has rank 'None'; choices: 8\.0, 16\.0"):
            cut(table, only={"rank": None}, label="t")


def test_choices_are_listed_by_number():
    with pytest.raises(UsageError, match=r"no row has rank '9'; choices: 4, 8.*, 16, 128$"):
        picked(rank=9)
    many = {"x": list(range(100))}
    with pytest.raises(UsageError, match=r"choices: 0, 1, 2, .*, 19, and 80 more"):
        split(many, "t", {"x": 200})
    with pytest.raises(UsageError, match=r"only\['x'\]: it has no value"):
        split(many, "t", {"x": []})


def test_blank_and_named_data_sets_together_are_refused():
    table = {"dataset": ["p", "", "q"], "x": [1, 2, 3]}
    for given in (lambda: split(table, "t", {}), lambda: split_frame(pd.DataFrame(table), {}, label="t")):
        with pytest.raises(UsageError, match="row 2, column 'dataset': blank; name the data set of every row"):
            given()
    assert list(split({"dataset": ["", None], "x": [1, 2]}, "t", {})) == ["t"]


def test_mixed_cells_in_a_column_give_no_traceback():
    x = np.arange(12.0)
    frame = pd.DataFrame({"model": ["a"] * 6 + [None] * 6, "x": x, "y": 1 + 2 * x})
    with pytest.raises(UsageError, match="no row has model 'zz'"):
        forgetting.fit(frame, "y = a + b*x", only={"model": "zz"})
    assert forgetting.fit(frame, "y = a + b*x", only={"model": None}, bootstrap=0).n_points == 6


def run(tmp_path, *options):
    path = tmp_path / "t.csv"
    path.write_text("model,x,y\n" + "\n".join(f"{m},{i},{1 + 2 * i}" for i, m in enumerate("ababcc")) + "\n")
    result = CliRunner().invoke(app, [str(path), "--law", "y = a + b*x", "--bootstrap", "0", *options])
    if result.exception:
        raise result.exception
    return result.stdout


def test_repeated_options_are_combined_or_refused(tmp_path):
    assert "4 points" in run(tmp_path, "--only", "model=a", "--only", "model=c")
    for option, one, two in (
        ("--map", "x=x", "x=y"),
        ("--start", "a=1", "a=2"),
        ("--bound", "a=0:1", "a=0:2"),
    ):
        with pytest.raises(UsageError, match=f"{option} [ax]: given 2 times .*; give it once"):
            run(tmp_path, option, one, option, two)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--start", "a=2:1"], "start of 'a' is 2 to 1; give finite numbers, the smaller first"),
        (["--start", "a=nan"], "start of 'a' is nan"),
        (["--start", "a=99", "--bound", "a=0:1"], "start of 'a' is 99, outside its bounds 0 to 1"),
        (["--start", "a=3:4", "--bound", "a=0:1"], "start of 'a' is 3 to 4, outside its bounds 0 to 1"),
    ],
)
def test_impossible_starts_are_refused(tmp_path, options, says):
    with pytest.raises(UsageError, match=says):
        run(tmp_path, *options)


@pytest.mark.parametrize("chosen", [{"only": {"seed": 1}}, {"dataset": "d"}, {"from_step": 20}])
@pytest.mark.parametrize("kind", [list, pd.DataFrame])
def test_messages_count_the_rows_of_the_given_table(kind, chosen):
    rows = [
        {"run_id": f"{method}{seed}", "method": method, "seed": seed, "dataset": "ed"[seed], "step": step,
         "finetune_loss": 2 - step / 100, "forgetting_loss": step / 100}
        for seed in (0, 1) for method in ("lora", "full") for step in (10, 20, 40)
    ]  # fmt: skip
    rows[10]["finetune_loss"] = ""
    given = {"dataset": "d", "bootstrap": 0} | chosen
    (warning,) = [w for w in forgetting.fit(kind(rows), "linear", **given).warnings if "left out" in w]
    assert "row 11, column 'finetune_loss': blank" in warning
    rows[10]["finetune_loss"] = "high"
    with pytest.raises(UsageError, match="row 11, column 'finetune_loss': 'high' is not a number"):
        forgetting.fit(kind(rows), "linear", **given)
    (failed,) = forgetting.fit(kind(rows), "linear", by="method", **given).to_dict()["failed"]
    assert "row 11, column 'finetune_loss': 'high' is not a number" in failed["reason"]
    if "from_step" not in chosen:
        with pytest.raises(UsageError, match=r"row 11 \(run full1\), column 'finetune_loss': high where a finite"):
            forgetting.compare(kind(rows), "lora", **chosen)
    rows[11]["dataset"] = ""
    for function in (forgetting.fit, forgetting.compare):
        with pytest.raises(UsageError, match="row 12, column 'dataset': blank"):
            function(kind(rows), only={"seed": 1})

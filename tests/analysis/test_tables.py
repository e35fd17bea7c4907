"""Tables of other tools, and errors that name file, row and column."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

import forgetting
from forgetting.analysis.exports import is_chart
from forgetting.analysis.fit import fit_law
from forgetting.analysis.tables import later, read_table, read_tables, split, stack
from forgetting.config.arguments import from_records
from forgetting.errors import UsageError

GOOD = "run_id,finetune_loss,forgetting_loss\na,1.0,0.5\na,0.9,0.6\nb,1.1,0.45\n"


def write(folder, name, content):
    path = folder / name
    path.write_text(content)
    return path


def peft(*, status="success", rank=8, metrics=None, name="lora/rank8", created="2026-08-01T10:00:00+00:00"):
    last = {"step": 5000, "test accuracy": 0.5, "train loss": 0.57, "forgetting": 0.12} if metrics is None else metrics
    config = {"peft_type": "LORA", "r": rank} if rank else None
    return {
        "run_info": {
            "created_at": created,
            "experiment_name": name,
            "train_config": {"seed": 0, "max_steps": 5000},
            "peft_config": config,
        },
        "train_info": {
            "status": status,
            "num_trainable_params": 9_175_040,
            "metrics": [{"step": 250, "train loss": 0.9}, last] if last else [],
        },
    }


def test_the_same_rows_come_out_of_every_format(tmp_path):
    csv = write(tmp_path, "t.csv", "\ufeff" + GOOD)  # as a spreadsheet writes it
    records = [
        {"run_id": r, "finetune_loss": x, "forgetting_loss": y}
        for r, x, y in [("a", 1.0, 0.5), ("a", 0.9, 0.6), ("b", 1.1, 0.45)]
    ]
    jsonl = write(tmp_path, "t.jsonl", "\n".join(json.dumps(r) for r in records) + "\n\n")
    whole = write(tmp_path, "t.json", json.dumps(records))
    pd.DataFrame(records).to_parquet(tmp_path / "t.parquet")
    fits = [fit_law("linear", read_table(p), bootstrap=0) for p in (csv, jsonl, whole, tmp_path / "t.parquet")]
    assert all(f.to_dict() == fits[0].to_dict() for f in fits)
    assert fits[0].n_runs == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", "", "the first line must name the columns"),
        ("t.csv", "a,b\n", "no row below the column names"),
        ("t.csv", "a,a\n1,2\n", "column 'a' occurs twice"),
        ("t.csv", "a,b\n1,2\n1,2,3\n", "line 3: 3 cells instead of 2"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("t.jsonl", '{"a": 1}\n[1]\n', "line 2: each line must be a JSON object, got list"),
        ("t.jsonl", "\n", "no rows"),
        ("t.json", '{"a": 1}', "neither a list of objects"),
        ("t.json", "{", "t.json: not JSON: Expecting"),
        ("t.parquet", "PAR?", "not a Parquet file"),
        ("t.ods", "x", "not a table; allowed: .csv, .tsv, .jsonl, .json, .parquet, .xlsx"),
    ],
)
def test_damaged_files_are_named_with_their_line(tmp_path, name, content, says):
    with pytest.raises(UsageError, match=says) as caught:
        read_table(write(tmp_path, name, content))
    assert name in str(caught.value)


def test_tables_in_utf_16_are_read_as_those_in_utf_8(tmp_path):
    rows = [{"run_id": "é", "finetune_loss": 1.0, "forgetting_loss": 0.5}] * 2
    for name, content in (
        ("a.csv", GOOD),
        ("a.tsv", GOOD.replace(",", "\t")),
        ("a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)),
    ):
        path = write(tmp_path, name, content)
        expected = read_table(path)
        path.write_bytes(content.replace("\n", "\r\n").encode("utf-16"))
        assert read_table(path) == expected
    path.write_bytes(content.encode("utf-16-le"))
    with pytest.raises(UsageError, match="without a byte order mark; convert it to UTF-8"):
        read_table(path)


def test_missing_files_and_foreign_folders_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.csv: no such file"):
        read_table(tmp_path / "nowhere.csv")
    with pytest.raises(UsageError, match="neither a study folder"):
        read_table(tmp_path)
    path = tmp_path / "latin.csv"
    path.write_bytes("a,b\né,1\n".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        read_table(path)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({"N": [1, 2, "x"]}, "row 3, column 'N': 'x' is not a number"),
        ({"N": [1, -2, 3]}, "row 2, column 'N': -2 where a positive number is needed"),
        ({"N": [0, 2, 3]}, "row 1, column 'N': 0 where a positive number is needed"),
        ({"loss": [1, float("inf"), 3]}, "row 2, column 'loss': inf where a finite number is needed"),
        (
            {"loss": [None, "", "NA"]},
            r" has no row with a number in each of N, D, loss \(row 1, column 'loss': blank\)",
        ),
        ({"loss": [1, 2, "inf"]}, "row 3, column 'loss': inf where a finite number is needed"),
        (
            {"D": [5, 5, 5], "N": [7, 8, 7], "loss": [1, 2, 1], "run_id": ["a", "a", "a"]},
            r"rows 1 and 3 are the same measurement \(a\)",
        ),
    ],
)
def test_bad_cells_are_named_by_row_and_column(cells, says):
    table = {"N": [1, 2, 3], "D": [1, 2, 3], "loss": [3, 2, 1]} | cells
    with pytest.raises(UsageError, match=f"table 'mine'.*{says}"):
        fit_law("chinchilla", table, label="mine")


def test_the_same_run_and_step_twice_is_refused():
    table = {"run_id": ["a", "b", "a"], "step": [1, 1, 1], "finetune_loss": [1, 2, 3], "forgetting_loss": [1, 2, 3]}
    with pytest.raises(UsageError, match=r"rows 1 and 3 are the same run and step \(a\)"):
        fit_law("linear", table)


def test_missing_columns_name_the_near_ones_and_the_map():
    table = {"params": [1, 2], "D": [1, 2], "lss": [1, 2]}
    with pytest.raises(UsageError, match=r"no column 'N'.* map another column with N=COLUMN"):
        fit_law("chinchilla", table)
    with pytest.raises(UsageError, match="did you mean 'lss'"):
        fit_law("chinchilla", table, columns={"N": "params"})
    with pytest.raises(UsageError, match="has no 'M' to map a column to"):
        fit_law("chinchilla", table, columns={"M": "params"})


def test_rows_of_unfinished_runs_are_left_out_by_name():
    table = {
        "run_id": ["a", "a", "a", "b", "c"],
        "status": ["done", "done", "done", "failed", "running"],
        "finetune_loss": [1, 2, 3, "nan", None],
        "forgetting_loss": [3, 2, 1.1, "nan", None],
    }
    fit = fit_law("linear", table, bootstrap=0)
    assert fit.n_points == 3
    assert any("b (failed), c (running)" in w for w in fit.warnings)
    with pytest.raises(UsageError, match="no rows to fit"):
        fit_law("linear", table | {"status": ["failed"] * 5})


def test_rows_of_unfinished_runs_without_names_are_all_counted():
    table = {
        "status": ["done", "done", "done", "unasked", "failed"],
        "finetune_loss": [1, 2, 3, 4, None],
        "forgetting_loss": [3, 2, 1.1, 1, None],
    }
    fit = fit_law("linear", table, bootstrap=0)
    assert "2 rows of runs that are not done were left out: unnamed" in fit.warnings


def test_peft_results_become_rows_and_failed_ones_are_named(tmp_path):
    for i, rank in enumerate((8, 16, 32, 64)):
        last = {"step": 5000, "train loss": 0.6 - 0.01 * i, "forgetting": 0.1 + 0.03 * i, "test accuracy": 0.5}
        content = peft(rank=rank, metrics=last, name=f"lora/rank{rank}")
        write(tmp_path, f"lora-{rank}.json", json.dumps(content))
    write(tmp_path, "oom.json", json.dumps(peft(status="failed", metrics={}, name="boft/default")))
    write(tmp_path, "full.json", json.dumps(peft(rank=None, name="full")))
    table = read_table(tmp_path)
    assert table["status"].count("done") == 5
    assert table["method"][table["run_id"].index("full")] == "full"
    lora = split(table, "peft", {"method": "lora"})
    (part,) = lora.values()
    fit = fit_law("linear", part, columns={"forgetting_loss": "forgetting"}, bootstrap=0)
    assert fit.parameters["c_fft"].value == pytest.approx(3.0)
    assert any("boft/default (failed)" in w for w in fit.warnings)
    one = read_table(tmp_path / "lora-8.json")
    assert (one["rank"], one["trainable_params"], one["test_accuracy"]) == ([8], [9_175_040], [0.5])
    write(tmp_path, "bad.json", json.dumps({"run_info": {}}))
    with pytest.raises(UsageError, match=r"bad\.json: not a PEFT result: 'train_info' is missing"):
        read_table(tmp_path)


def test_peft_results_from_before_its_fix_are_no_forgetting(tmp_path):
    new = [{"step": 5000, "train loss": 0.6 - 0.01 * i, "forgetting": 0.1 + 0.03 * i} for i in range(3)]
    for i, last in enumerate(new):
        write(tmp_path, f"new-{i}.json", json.dumps(peft(metrics=last, name=f"new{i}")))
    for name, created in (("old", "2026-07-14T08:00:00+00:00"), ("undated", None)):
        write(tmp_path, f"{name}.json", json.dumps(peft(name=name, created=created)))
    write(tmp_path, "none.json", json.dumps(peft(metrics={"step": 5000, "train loss": 0.5}, name="none")))
    fit = fit_law("linear", read_table(tmp_path), columns={"forgetting_loss": "forgetting"}, bootstrap=0)
    assert fit.n_points == 3
    assert fit.parameters["c_fft"].value == pytest.approx(3.0)
    (left,) = [w for w in fit.warnings if "left out" in w]
    for run in ("old (forgetting measured before", "undated (forgetting measured", "none (forgetting not measured)"):
        assert run in left
    with pytest.raises(UsageError, match=r"pull request 3419, merged on 2026-07-14; rerun its method comparison"):
        read_table(tmp_path / "old.json")


CHART_F = """Step,r8 - eval/forgetting,r8 - eval/forgetting__MIN,r8 - eval/forgetting__MAX,r16 - eval/forgetting
100,0.5,0.4,0.6,0.6
200,0.55,0.5,0.6,""
"""
CHART_T = '"Step","r8 - eval/loss","r16 - eval/loss"\n100,1.1,1.0\n200,1.05,""\n'
RUNS = '"Name","State","lora_r","trainable"\nr8,finished,8,1000\nr16,crashed,16,2000\n'


def test_wandb_charts_and_the_runs_table_are_joined(tmp_path):
    paths = [write(tmp_path, n, c) for n, c in (("f.csv", CHART_F), ("t.csv", CHART_T), ("runs.csv", RUNS))]
    table = read_tables(paths)
    rows = {(r, s): i for i, (r, s) in enumerate(zip(table["run_id"], table["step"], strict=True))}
    assert set(rows) == {("r8", "100"), ("r8", "200"), ("r16", "100")}
    at = rows["r8", "200"]
    assert (table["eval/forgetting"][at], table["eval/loss"][at], table["trainable"][at]) == ("0.55", "1.05", "1000")
    assert table["status"][rows["r16", "100"]] == "crashed"
    assert table["status"][at] == "done"
    assert not any("__MIN" in name for name in table)
    with pytest.raises(UsageError, match="run 'r16' of a chart is not in the export"):
        read_tables([paths[0], write(tmp_path, "less.csv", RUNS.replace("r16,", "r32,"))])


def test_a_run_s_last_value_does_not_fill_the_gaps_of_a_chart(tmp_path):
    losses = write(tmp_path, "loss.csv", "Step,r8 - loss\n10,2.0\n20,1.5\n30,1.2\n")
    forgetting_ = write(tmp_path, "forgetting.csv", "Step,r8 - forgetting\n20.0,0.2\n")
    runs = write(tmp_path, "runs.csv", "Name,State,rank,loss,forgetting\nr8,finished,8,1.2,0.9\n")
    for paths in ([losses, forgetting_], [losses, forgetting_, runs]):
        table = read_tables(paths)
        assert table["loss"] == ["2.0", "1.5", "1.2"]
        assert table["forgetting"] == [None, "0.2", None]
    assert table["rank"] == ["8"] * 3


def test_what_a_chart_cannot_tell_is_refused(tmp_path):
    chart = write(tmp_path, "t.csv", CHART_T)
    twice = write(tmp_path, "runs.csv", RUNS + "r8,crashed,999,5\n")
    with pytest.raises(UsageError, match="two runs are named 'r8'"):
        read_tables([chart, twice])
    for axis in ("Relative Time (Process)", "epoch", "_timestamp"):
        timed = write(tmp_path, "timed.csv", CHART_T.replace("Step", axis))
        with pytest.raises(UsageError, match=re.escape(f"the x axis of a W&B chart is '{axis}', not steps")):
            read_tables([timed])
    for axis in ("_step", "train/global_step", "trainer/global_step"):
        assert read_tables([write(tmp_path, "s.csv", CHART_T.replace("Step", axis))])["step"] == ["100", "200", "100"]


def test_delimiters_decimal_commas_and_thousands(tmp_path):
    plain = read_table(write(tmp_path, "plain.csv", GOOD))
    for name, mark in (("s.csv", ";"), ("t.csv", "\t"), ("t.tsv", "\t")):
        assert read_table(write(tmp_path, name, GOOD.replace(",", mark))) == plain
    comma = read_table(write(tmp_path, "comma.csv", "run;P;loss\na;1.250.000;2,50\nb;800;1.234,5\n"))
    assert comma == {"run": ["a", "b"], "P": ["1250000", "800"], "loss": ["2.50", "1234.5"]}
    for cells in ("1.000,2.000,12.000", "1.250.000,2.500.000,900"):
        rows = "\n".join(f"{cell},1.5" for cell in cells.split(","))
        if "900" in cells:
            rows = rows.replace("900,", "1.900.000,")
        with pytest.raises(UsageError, match=r"column 'P': is 1\.[0-9.]+ a whole number with a thousands separator"):
            read_table(write(tmp_path, "thousands.csv", f"P,loss\n{rows}\n"))
    rounded = read_table(write(tmp_path, "rounded.csv", "loss\n1.679\n1.604\n1.000\n"))
    assert rounded == {"loss": ["1.679", "1.604", "1.000"]}


def test_excel_is_read_where_openpyxl_is_installed(tmp_path, monkeypatch):
    path = tmp_path / "t.xlsx"
    path.write_bytes(b"no workbook")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"an Excel file needs openpyxl \(pip install openpyxl\); or save it as CSV"):
        read_table(path)
    monkeypatch.undo()
    pytest.importorskip("openpyxl")
    with pytest.raises(UsageError, match="not an Excel workbook"):
        read_table(path)
    frame = pd.DataFrame(
        {"run_id": ["a", "a", "b"], "finetune_loss": [1.0, 0.9, 1.1], "forgetting_loss": [0.5, 0.6, 0.45]}
    )
    frame.to_excel(path, index=False)
    fits = [fit_law("linear", table, bootstrap=0) for table in (read_table(path), frame)]
    assert fits[0].to_dict() == fits[1].to_dict()


def test_booleans_are_not_numbers_and_runs_must_not_be_blank():
    table = {"run_id": ["a", "a", "b", "b"], "finetune_loss": [1.0, 0.9, True, 0.7], "forgetting_loss": [1.0, 2, 3, 4]}
    with pytest.raises(UsageError, match="row 3, column 'finetune_loss': 'True' is not a number"):
        fit_law("linear", table, bootstrap=0)
    table["finetune_loss"][2] = 0.8
    for blank in ("", " ", None, float("nan"), pd.NA):
        given = {**table, "run_id": ["a", blank, "b", blank]}
        with pytest.raises(UsageError, match=r"row 2, column 'run_id': blank, as in 1 other row; name the run"):
            fit_law("linear", given, bootstrap=0)
        with pytest.raises(UsageError, match="row 2, column 'run_id': blank"):
            forgetting.compare(given | {"method": ["lora"] * 4, "step": [1, 2, 1, 2]}, "lora")


def test_a_table_with_a_dash_in_one_name_is_not_a_chart():
    assert not is_chart({"Step": [1], "loss - mean": [1], "rank": [1]})
    assert is_chart({"Step": [1], "run - loss": [1]})


def test_mlflow_exports_lose_their_prefixes(tmp_path):
    content = "run_id,status,metrics.finetune_loss,metrics.forgetting_loss,params.rank\n"
    content += "a,FINISHED,1.0,0.5,8\nb,FINISHED,0.9,0.7,16\nc,FAILED,,,32\nd,FINISHED,0.8,0.9,64\n"
    fit = fit_law("linear", read_table(write(tmp_path, "m.csv", content)), bootstrap=0)
    assert fit.parameters["c_fft"].value == pytest.approx(2.0)
    assert any("c (failed)" in w for w in fit.warnings)
    with pytest.raises(UsageError, match="both mean 'rank'"):
        read_table(write(tmp_path, "m2.csv", "metrics.rank,params.rank\n1,2\n"))


def test_runs_of_several_tables_stay_separate(tmp_path):
    paths = [write(tmp_path, name, GOOD) for name in ("one.csv", "two.csv")]
    table = read_tables(paths)
    assert table["run_id"] == ["one/a", "one/a", "one/b", "two/a", "two/a", "two/b"]
    assert stack([{"a": [1]}, {"b": [2]}]) == {"a": [1, None], "b": [None, 2]}
    assert from_records([{"a": 1}, {"b": 2}]) == {"a": [1, None], "b": [None, 2]}
    with pytest.raises(UsageError, match="no table given"):
        read_tables([])


def test_runs_of_tables_with_one_name_stay_separate_and_blank_ones_blank(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    paths = [write(tmp_path, f"{name}/log.csv", GOOD) for name in ("a", "b")]
    table = read_tables(paths)
    assert table["run_id"] == [f"{path}/{run}" for path in paths for run in "aab"]
    blank = write(tmp_path, "blank.csv", GOOD.replace("\nb,", "\n,"))
    assert read_tables([paths[0], blank])["run_id"][-1] == ""


def test_rows_are_chosen_by_value_and_step():
    table = {"method": ["lora", "ia3", "lora"], "step": ["10", "20", "30"], "dataset": ["x", "x", "y"]}
    assert split(table, "t", {"method": "lora"})["y"]["step"] == ["30"]
    assert list(split(table, "t", {}, "x")) == ["x"]
    assert later(table, 20)["method"] == ["ia3", "lora"]
    with pytest.raises(UsageError, match="no column 'metod'; did you mean 'method'"):
        split(table, "t", {"metod": "lora"})
    with pytest.raises(UsageError, match="no row has method 'loar'; did you mean 'lora'"):
        split(table, "t", {"method": "loar"})
    with pytest.raises(UsageError, match="no row with method=ia3, dataset=y"):
        split(table, "t", {"method": "ia3"}, "y")
    with pytest.raises(UsageError, match="row 2, column 'step': 'x' is not a number"):
        later(table | {"step": ["1", "x", "3"]}, 2)
    with pytest.raises(UsageError, match="row 3, column 'step': 'nan' is not a number"):
        later(table | {"step": [1.0, 2.0, float("nan")]}, 2)


def test_pandas_and_plain_lists_give_the_same_fit():
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 2, 30)
    table = {"run_id": np.repeat(list("abcdef"), 5).tolist(), "finetune_loss": x, "forgetting_loss": 3 - x**1.1}
    one, two = fit_law("linear", table, bootstrap=20), fit_law("linear", pd.DataFrame(table), bootstrap=20)
    assert one.to_dict() == two.to_dict()

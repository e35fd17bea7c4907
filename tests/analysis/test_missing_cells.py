"""Rows without a number are left out, counted and named; text and infinity remain errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import forgetting
from forgetting.analysis.compare import compare_tables
from forgetting.analysis.fit import r2_by
from forgetting.config.arguments import from_records
from forgetting.errors import UsageError

X = np.arange(1.0, 9)
Y = 2 + 3 * X


@pytest.mark.parametrize("missing", ["", " ", "NA", "nan", "N/A", "null", None, float("nan"), pd.NA])
def test_a_fit_is_that_of_the_rows_that_have_numbers(missing):
    x, y = X.tolist(), Y.tolist()
    table = {"x": [*x[:3], missing, *x[3:]], "y": [*y[:3], 99.0, *y[3:-1], missing]}
    for given in (table, pd.DataFrame(table)):
        fit = forgetting.fit(given, "y = a + b*x", bootstrap=0)
        assert fit.n_points == 7
        assert [e.value for e in fit.parameters.values()] == pytest.approx([2, 3])
        (warning,) = [w for w in fit.warnings if "left out" in w]
        assert warning.startswith("2 of 9 rows were left out, as a value is missing (the first: row 4, column 'x': ")


def test_missing_floats_of_a_frame_are_found():
    frame = pd.DataFrame({"x": X, "y": np.where(X == 5, np.nan, Y), "unused": np.nan})
    fit = forgetting.fit(frame, "y = a + b*x", bootstrap=0)
    assert "1 of 8 rows was left out, as a value is missing (row 5, column 'y': blank)" in fit.warnings
    with pytest.raises(UsageError, match="row 5, column 'y': nan where a finite number is needed"):
        r2_by(fit, frame.assign(method="lora"))


@pytest.mark.parametrize("wrong", ["inf", float("-inf"), "1,5", "-", True, "high"])
def test_text_instead_of_a_number_stays_an_error(wrong):
    with pytest.raises(UsageError, match=r"row 2, column 'y': '?.+ (is not a number|where a finite number is needed)"):
        forgetting.fit({"x": [1, 2, 3], "y": [1.0, wrong, 3.0]}, "y = a + b*x", bootstrap=0)


def test_a_blank_group_leaves_its_row_out():
    table = {"x": [*X, *X, 1], "y": [*Y, *(2 * Y), 7], "model": ["a"] * 8 + ["b"] * 8 + [""]}
    made = forgetting.fit(table, "y = a + b*x", by="model", bootstrap=0)
    assert made.to_frame()["a"].tolist() == pytest.approx([2, 4])
    message = "1 row of 'table' left out, as the group is not named (row 17, column 'model': blank)"
    assert made.left_out == (message,)
    assert message in str(made)
    assert made.to_dict()["left_out"] == [message]


def compared(**cells):
    rows = [
        {"run_id": f"{m}{s}", "method": m, "seed": s, "step": t, "finetune_loss": 2 - 0.1 * t - 0.01 * s,
         "forgetting": 0.1 * t + (0.02 if m == "full" else 0)}
        for m in ("lora", "full") for s in (0, 1) for t in (1, 2, 3, 4)
    ]  # fmt: skip
    rows[5] |= cells
    return rows


def test_compare_leaves_them_out_as_well():
    without = [row for i, row in enumerate(compared()) if i != 5]
    want = forgetting.compare(without, "lora").to_dict()
    for cells in ({"forgetting": ""}, {"finetune_loss": "NA"}, {"forgetting": None, "run_id": None}):
        made = forgetting.compare(compared(**cells), "lora")
        assert "1 row left out, as a value is missing (row 6, column 'f" in str(made)
        got = made.to_dict()
        for result in (want, got):
            for part in result["datasets"].values() if "datasets" in result else [result]:
                part.pop("notes", None)
        assert got == want
    with pytest.raises(UsageError, match=r"row 6 \(run lora1\), column 'forgetting': inf where a finite number"):
        forgetting.compare(compared(forgetting="inf"), "lora")


@pytest.mark.parametrize("blank", [None, float("nan"), pd.NA, "", " "])
def test_a_blank_status_counts_as_finished_everywhere(blank):
    rows = [row | {"forgetting_loss": 1 + row["forgetting"], "trainable_params": 5} for row in compared()]
    want = forgetting.compare(rows, "lora").to_dict()
    line = forgetting.fit(rows, "linear", bootstrap=0)
    given = [row | {"status": blank} for row in rows]
    for table in (given, pd.DataFrame(given)):
        assert forgetting.compare(table, "lora").to_dict() == want
        assert compare_tables({"table": from_records(given)}, "lora").to_dict() == want
        fit = forgetting.fit(table, "linear", bootstrap=0)
        assert (fit.parameters, fit.warnings) == (line.parameters, line.warnings)
    some = [row | {"status": "done" if i else blank} for i, row in enumerate(rows)]
    said = "1 row without a status counts as finished"
    made = forgetting.compare(some, "lora").to_dict()
    assert said in made["datasets"]["table"]["notes"]
    assert made["datasets"]["table"]["contenders"] == want["datasets"]["table"]["contenders"]
    assert made["beyond_the_reference"] == want["beyond_the_reference"]
    assert said in forgetting.fit(some, "linear", bootstrap=0).warnings
    failed = [row | {"status": "failed" if row["method"] == "full" else blank} for row in rows]
    assert forgetting.fit(failed, "linear", bootstrap=0).n_points == 8

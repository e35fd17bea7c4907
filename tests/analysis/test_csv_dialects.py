"""Dialects of CSV: separators, comments, blank rows and columns of spreadsheets, compressed files."""

from __future__ import annotations

import gzip

import pytest

import forgetting
from forgetting.analysis.tables import read_table
from forgetting.errors import UsageError

WANT = {"run": ["a", "b"], "loss": ["1.5", "2.5"]}


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nrun;loss\na;1.5\nb;2.5\n",
        "SEP=|\r\nrun|loss\r\na|1.5\r\nb|2.5\r\n",
        "run|loss\na|1.5\nb|2.5\n",
        "run loss\na 1.5\nb 2.5\n",
        "  run   loss \n  a     1.5 \n  b     2.5\n\n",
        "run \t loss\na\t1.5\nb\t2.5\n",
        "# by a script, 2026\n#\nrun,loss\na,1.5\nb,2.5\n",
        "#run,loss\na,1.5\nb,2.5\n",
        "# run loss\na 1.5\nb 2.5\n",
        "# all runs\nsep=;\n\nrun;loss\na;1,5\nb;2,5\n",
        "run,loss,,\na,1.5,,\nb,2.5,,\n,,,\n,\n",
    ],
)
def test_every_csv_dialect_gives_the_same_table(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text, newline="")
    assert read_table(path) == WANT
    with gzip.open(tmp_path / "t.csv.gz", "wt", newline="") as file:
        file.write(text)
    assert read_table(tmp_path / "t.csv.gz") == WANT


def test_one_column_with_a_space_in_its_name_stays_one(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("my loss\n1.5\n2.5\n")
    assert read_table(path) == {"my loss": ["1.5", "2.5"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# one\n# two\nrun,loss\na,1\nb,2,3\n", "line 5: 3 cells instead of 2"),
        ("run,loss,\na,1,\nb,2,3\n", "line 3: 3 cells instead of 2"),
        (
            "run;n\na;1,000\nb;2,000\n",
            "column 'n': is 1,000 a whole number with a thousands separator.* write 1000 or 1",
        ),
        ("run,loss\n,\n,\n", "no row below the column names"),
        ("# nothing\n", "the first line must name the columns"),
    ],
)
def test_mistakes_name_the_line_and_the_text_of_the_file(tmp_path, text, says):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        read_table(path)


def test_a_packed_table_is_bounded(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write("a,b\n" + "1,2\n" * 1000)
    monkeypatch.setattr("forgetting.files.MAX_FILE", 100)
    with pytest.raises(UsageError, match=r"t\.csv\.gz: .*100"):
        read_table(tmp_path / "t.csv.gz")


def test_blank_rows_and_columns_of_a_workbook_are_skipped(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["run", "loss", None], ["a", 1.5, None], ["b", 2.5, None], [" ", None, None]):
        book.active.append(row)
    book.active.cell(4, 1).value = None
    book.active.cell(9, 3).number_format = "0.0"
    book.save(tmp_path / "t.xlsx")
    assert read_table(tmp_path / "t.xlsx") == {"run": ["a", "b"], "loss": [1.5, 2.5]}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: forgetting.fit({"x": [1], "y": [1]}, "y=a+b*x", bounds={"b": 0.5}),
         r"bounds\['b'\]: got float 0.5; allowed: a pair of numbers$"),
        (lambda: forgetting.fit({"x": [1], "y": [1]}, "y=a+b*x", start={"b": "1"}),
         r"start\['b'\]: got str '1'; allowed: a number, a pair of numbers$"),
        (lambda: forgetting.predict("besiroglu2024/chinchilla", at={"N": "a"}),
         r"at\['N'\]: got str 'a'; allowed: a number, a list of numbers$"),
        (lambda: forgetting.predict("besiroglu2024/chinchilla", at=3),
         "at: got int 3; allowed: a dictionary of numbers or lists of numbers by name"),
        (lambda: forgetting.predict("besiroglu2024/chinchilla", ranks=[8, "x"]), r"ranks\[1\]: got str 'x'"),
    ],
)  # fmt: skip
def test_an_entry_of_another_type_is_named(call, says):
    with pytest.raises(UsageError, match=says):
        call()

"""Display of results: tables as text, HTML and in a terminal; colours of charts; plain data."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np
import pytest
from rich.console import Console

from forgetting.display.charts import LIGHT, Chart, hover_html, plain_layout, plotly_figure
from forgetting.display.numbers import counted, plain, several, share_of
from forgetting.display.paths import shortener
from forgetting.display.tables import SHOWN_ROWS, Shown

SHOWN = Shown(["title", "of <b>"], ("name", "value", ""), [("a<b", "-1.5", "x"), ("c", "10.25", "[y]")], ["a note"])


def test_text_is_lines_a_table_and_notes() -> None:
    assert SHOWN.text().splitlines() == [
        *("title", "of <b>", ""),
        *("name  value", "a<b   -1.5   x", "c     10.25  [y]", ""),
        "a note",
    ]
    assert Shown(["alone"]).text() == "alone"


def test_html_escapes_every_text_and_says_what_it_leaves_out() -> None:
    page = SHOWN.html()
    assert "<strong>title</strong><br>of &lt;b&gt;" in page
    assert "<td>a&lt;b</td><td>-1.5</td>" in page
    long = Shown([], ("n",), [(str(i),) for i in range(SHOWN_ROWS + 5)]).html()
    assert long.count("<td>") == SHOWN_ROWS
    assert f"the first {SHOWN_ROWS} of {SHOWN_ROWS + 5} rows" in long


def test_numbers_are_right_aligned_in_a_terminal_and_markup_is_text() -> None:
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(SHOWN.rich())
    lines = console.export_text().splitlines()
    assert lines[3].startswith("a<b   -1.5")
    assert lines[4].startswith("c    10.25 [y]")


def test_plain_data_of_anything_is_json() -> None:
    @dataclass(frozen=True)
    class One:
        value: float
        rows: tuple[int, ...]

    found = plain({"one": One(float("nan"), (1, 2)), 3: np.float32(0.5), "array": np.array([1.0, np.inf])})
    assert found == {"one": {"value": None, "rows": [1, 2]}, "3": 0.5, "array": [1.0, None]}
    json.dumps(found, allow_nan=False)


def test_a_figure_has_the_charts_colours_names_and_hover_texts() -> None:
    def trace(series: str, y: list[float], rows: list[int]) -> dict[str, object]:
        meta = {"series": series, "role": "points", "rows": rows}
        return {"type": "scatter", "x": [1, 2], "y": y, "marker": {"color": f"var(--{series})"}, "meta": meta}

    data = [trace("s0", [1.0, 2.0], [0, 1]), trace("s1", [3.0, 4.0], [1, 0]), trace("s1", [5.0, 6.0], [0, 0])]
    chart = Chart("k", "Title", "", "", {"data": data, "layout": plain_layout("x", "y")})
    hover = ["run a\nL_ft  0.5", "run b\nL_f  0.25"]
    figure = plotly_figure(chart, hover=hover, names={"s0": "zero", "s1": "one"}, colours={"s0": "#111", "s1": "#222"})
    assert [list(t.y) for t in figure.data] == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert [t.marker.color for t in figure.data] == ["#111", "#222", "#222"]
    assert [t.name for t in figure.data if t.showlegend] == ["zero", "one"]
    assert figure.data[0].text[0] == "<b>run a</b><br>L<sub>ft</sub>  0.5"
    assert hover_html(hover[1]) == "<b>run b</b><br>L<sub>f</sub>  0.25"
    assert figure.layout.paper_bgcolor == LIGHT["surface"]
    assert chart.spec["data"][0]["marker"] == {"color": "var(--s0)"}  # the page's own figure is unchanged


@pytest.mark.parametrize("width", [140, 80, 60])
def test_a_narrow_terminal_loses_no_digit_of_a_number(width: int) -> None:
    row = ("8", "98,560", "26 (21 to 32)", "2.1071 (2.0125 to 2.2929), run 1.9995 to 2.2929", "8.15e+04", "4.83e+11")
    table = Shown(("plan",), ("rank", "trainable params", "steps", "fine-tuning loss", "tokens", "FLOPs"), (row,))
    console = Console(width=width, file=io.StringIO())
    console.print(table.table())
    found = console.file.getvalue()
    assert sorted("".join((*table.columns, *row)).replace(" ", "")) == sorted("".join(found.split()))
    if width > 60:
        assert "4.83e+11" in found


def test_paths_in_labels_are_shortened_and_stay_apart() -> None:
    labels = [
        "replay text=/a/x/one two.txt fraction=0.1",
        "replay text=/a/y/one two.txt",
        "kl text=/a/squad weight=2.0",
    ]
    labels += ["kl text=squad", "replay text=org/name + kl weight=2.0", "replay text=C:\\me\\z.txt", ""]
    short = shortener(labels)
    expected = ["replay text=x/one two.txt fraction=0.1", "replay text=y/one two.txt", "kl text=a/squad weight=2.0"]
    assert [short(label) for label in labels] == [*expected, *labels[3:5], "replay text=z.txt", ""]
    assert shortener(["kl text=/x.txt", "kl text=/a/x.txt"])("kl text=/x.txt") == "kl text=/x.txt"


def test_counts_agree_with_their_nouns_and_verbs() -> None:
    assert [several(n, "row") for n in (0, 1, 1200)] == ["0 rows", "1 row", "1,200 rows"]
    assert [counted(n, "item", "is") for n in (1, 2)] == ["1 item is", "2 items are"]
    assert [share_of(n, whole, "row", "has") for n, whole in ((1, 1), (1, 2), (2, 2))] == [
        "1 of 1 row has",
        "1 of 2 rows has",
        "2 of 2 rows have",
    ]

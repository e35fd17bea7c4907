"""A fit as plain text, as a rich table, as HTML and as LaTeX: the same content, read from one place."""

from __future__ import annotations

import html as escaping
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


def number(value: float) -> str:
    """Five significant digits, or a dash for what is not known."""
    return f"{value:.5g}" if math.isfinite(value) else "-"


def span(low: float, high: float) -> str:
    """An interval, or a dash."""
    return f"{number(low)} to {number(high)}" if math.isfinite(low) and math.isfinite(high) else "-"


@dataclass(frozen=True)
class Sheet:
    """What is shown of a fit.

    Attributes:
        heading: what was fitted, to what, how, and how well.
        columns: over the rows.
        rows: name, value, interval and meaning of each parameter.
        r2: by output.
        notes: measured range, gauge, and warnings.
    """

    heading: list[str]
    columns: tuple[str, str, str, str]
    rows: list[tuple[str, str, str, str]]
    r2: dict[str, float]
    notes: list[str]


def text(sheet: Sheet) -> str:
    """Plain text, aligned."""
    return "\n".join([*sheet.heading, "", aligned([sheet.columns, *sheet.rows]), "", *sheet.notes])


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines with columns of equal width."""
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table)
    return "\n".join(lines)


def comparison_text(label: str, ranked: Sequence[Mapping[str, Any]]) -> str:
    """Laws of one table side by side."""
    table = [("law", "AICc", "above best", "error on a run left out, nats/token")]
    for row in ranked:
        left = (row["leave_one_run_out"] or {}).get("rmse", {})
        errors = ", ".join(f"{k} {number(v)}" for k, v in left.items()) or "-"
        table.append((row["law"], f"{row['aicc']:.1f}", f"{row['delta_aicc']:.1f}", errors))
    note = "AICc takes steps of a run as independent and compares laws of the same outputs only."
    return f"{label}: which law?\n{aligned(table)}\n{note}"


def extrapolation_text(tests: Sequence[Mapping[str, Any]]) -> str:
    """Extrapolation tests, one line an output."""
    table = [("data set", "law", "fitted to", "predicted to", "output", "error", "bias", "half band")]
    for t in tests:
        span = (f"{t['axis']} {number(t['fitted_to'])}", number(t["tested_to"]))
        for output in t["rmse"]:
            figures = (number(t[k][output]) for k in ("rmse", "bias", "band"))
            table.append((t["dataset"], t["law"], *span, output, *figures))
    return f"extrapolation (root mean square error, bias, and half the predicted band; nats/token)\n{aligned(table)}"


def rich_table(sheet: Sheet) -> RenderableType:
    """For a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None)
    for name, side in zip(sheet.columns, ("left", "right", "right", "left"), strict=True):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in sheet.rows:
        table.add_row(*(Text(cell) for cell in row))
    return Group(*(Text(line) for line in sheet.heading), table, *(Text(line) for line in sheet.notes))


def html(sheet: Sheet) -> str:
    """For a notebook; every text is escaped."""

    def tag(name: str, content: str) -> str:
        return f"<{name}>{content}</{name}>"

    def cells(name: str, row: tuple[str, ...]) -> str:
        return tag("tr", "".join(tag(name, escaping.escape(c)) for c in row))

    lines = sheet.heading
    head = tag("strong", escaping.escape(lines[0])) + "".join("<br>" + escaping.escape(x) for x in lines[1:])
    body = cells("th", sheet.columns) + "".join(cells("td", row) for row in sheet.rows)
    tail = "".join(tag("li", escaping.escape(x)) for x in sheet.notes)
    return tag("div", tag("p", head) + tag("table", body) + tag("ul", tail))


_LATEX = {c: "\\" + c for c in "_%&#${}"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
}


def _tex(content: str) -> str:
    return "".join(_LATEX.get(c, c) for c in content)


def latex(sheet: Sheet) -> str:
    """A tabular for the booktabs package."""
    name, value, interval, _ = (_tex(c) for c in sheet.columns)
    lines = [r"\begin{tabular}{lrr}", r"\toprule", rf"{name} & {value} & {interval} \\", r"\midrule"]
    lines += [rf"{_tex(k)} & {_tex(v)} & {_tex(s.replace(' to ', '--'))} \\" for k, v, s, _ in sheet.rows]
    lines += [rf"$R^2$ {_tex(k)} & {number(v)} & \\" for k, v in sheet.r2.items()]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

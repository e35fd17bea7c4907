"""A fit as plain text, as a rich table, as HTML and as LaTeX: the same content, read from one place."""

from __future__ import annotations

import html as escaping
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forgetting.analysis.fit.result import Estimate, Fit

if TYPE_CHECKING:
    from rich.console import RenderableType


def number(value: float) -> str:
    """Five significant digits, or a dash for what is not known."""
    return f"{value:.5g}" if math.isfinite(value) else "-"


def rows(fit: Fit) -> list[tuple[str, str, str, str]]:
    """Name, value, interval and meaning of each parameter."""
    meaning = {p.name: p.meaning for p in fit.law_object.parameters}
    return [(k, number(e.value), span(e), meaning.get(k, "")) for k, e in fit.parameters.items()]


def span(e: Estimate) -> str:
    """The interval, or a dash."""
    return f"{number(e.low)} to {number(e.high)}" if math.isfinite(e.low) and math.isfinite(e.high) else "-"


def heading(fit: Fit) -> list[str]:
    """What was fitted, to what, how, and how well."""
    law = fit.law_object
    lines = [f"{law.title}: {fit.label}" if fit.label else str(law.title), str(law.formula), f"source: {law.source}"]
    if fit.objective != "published":
        lines.append(
            f"{fit.n_points} points of {fit.n_runs} runs, {fit.objective}, objective {fit.objective_value:.8g}"
        )
    if fit.r2:
        lines.append("R2: " + ", ".join(f"{k} {number(v)}" for k, v in fit.r2.items()))
    return lines


def notes(fit: Fit) -> list[str]:
    """Measured range, gauge, and warnings."""
    ranges = ", ".join(f"{k} {number(a)} to {number(b)}" for k, (a, b) in fit.measured_range.items())
    out = [f"measured range: {ranges}"] if ranges else []
    out += [f"gauge: {note}" for note in fit.diagnostics.get("gauge", [])]
    return out + [f"warning: {w}" for w in fit.warnings]


def _columns(fit: Fit) -> tuple[str, str, str, str]:
    return "parameter", "value", f"{fit.confidence:.0%} interval", "meaning"


def text(fit: Fit) -> str:
    """Plain text, aligned."""
    return "\n".join([*heading(fit), "", aligned([_columns(fit), *rows(fit)]), "", *notes(fit)])


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


def rich_table(fit: Fit) -> RenderableType:
    """For a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None)
    for name, side in zip(_columns(fit), ("left", "right", "right", "left"), strict=True):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in rows(fit):
        table.add_row(*(Text(cell) for cell in row))
    return Group(*(Text(line) for line in heading(fit)), table, *(Text(line) for line in notes(fit)))


def html(fit: Fit) -> str:
    """For a notebook; every text is escaped."""

    def tag(name: str, content: str) -> str:
        return f"<{name}>{content}</{name}>"

    def cells(name: str, row: tuple[str, ...]) -> str:
        return tag("tr", "".join(tag(name, escaping.escape(c)) for c in row))

    lines = heading(fit)
    head = tag("strong", escaping.escape(lines[0])) + "".join("<br>" + escaping.escape(x) for x in lines[1:])
    body = cells("th", _columns(fit)) + "".join(cells("td", row) for row in rows(fit))
    tail = "".join(tag("li", escaping.escape(x)) for x in notes(fit))
    return tag("div", tag("p", head) + tag("table", body) + tag("ul", tail))


_LATEX = {c: "\\" + c for c in "_%&#${}"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
}


def _tex(content: str) -> str:
    return "".join(_LATEX.get(c, c) for c in content)


def latex(fit: Fit) -> str:
    """A tabular for the booktabs package."""
    name, value, interval, _ = (_tex(c) for c in _columns(fit))
    lines = [r"\begin{tabular}{lrr}", r"\toprule", rf"{name} & {value} & {interval} \\", r"\midrule"]
    lines += [rf"{_tex(k)} & {_tex(v)} & {_tex(s.replace(' to ', '--'))} \\" for k, v, s, _ in rows(fit)]
    lines += [rf"$R^2$ {_tex(k)} & {number(v)} & \\" for k, v in fit.r2.items()]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

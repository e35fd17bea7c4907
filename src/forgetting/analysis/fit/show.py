"""Parts of a fit as text and as LaTeX, shared by the terminal, the report and notebooks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from forgetting.analysis.fit.estimate import BOUND, Estimate
from forgetting.display.tables import Shown, aligned

LONG, MOST_DIGITS = 6, 15
"""A parameter beyond this power of ten is shown as one: LONG if known to no better than DECADES, MOST_DIGITS always."""
DECADES = 3


def number(value: float) -> str:
    """A number with five significant digits; a dash if unknown."""
    return f"{value:.5g}" if math.isfinite(value) else "-"


def span(low: float, high: float) -> str:
    """An interval, with enough digits that its ends differ; a dash if unknown."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "-"
    digits = next((d for d in range(5, 17) if low == high or f"{low:.{d}g}" != f"{high:.{d}g}"), 17)
    return f"{low:.{digits}g} to {high:.{digits}g}"


def value(estimate: Estimate, *, scale: bool) -> str:
    """A parameter's value, or a note that it is not determined or outside the range of floating-point numbers."""
    if estimate.identified == "none":
        return "not determined"
    if math.isinf(estimate.value) or (scale and estimate.value == 0):
        return "outside the range of numbers; only its ratio matters"
    return power(estimate.value) if folded(estimate) else number(estimate.value)


def ends(estimate: Estimate) -> str:
    """A parameter's interval, the one end that is known, or a note that it is at its bound; a dash if unknown."""
    if estimate.identified == "none":
        return "-"
    if estimate.identified == BOUND:
        return "at its bound"
    one = power if folded(estimate) else number
    low, high = math.isfinite(estimate.low), math.isfinite(estimate.high)
    if low and high:
        return f"{one(estimate.low)} to {one(estimate.high)}" if one is power else span(estimate.low, estimate.high)
    return f"at least {one(estimate.low)}" if low else f"at most {one(estimate.high)}" if high else "-"


def folded(estimate: Estimate) -> bool:
    """Whether a parameter is shown as a power of ten: it is extreme, or huge or tiny and known only to a few decades.

    Tables then show `10^98.5`; files keep the numbers.

    Examples:
        >>> folded(Estimate(3e98, 1e12, 5e150)), folded(Estimate(4.2e8, 4.0e8, 4.5e8)), folded(Estimate(0.3, 0.2, 0.4))
        (True, False, False)
    """
    known = [number for number in (estimate.value, estimate.low, estimate.high) if math.isfinite(number)]
    if not known or min(known) <= 0:
        return False
    sizes = [math.log10(number) for number in known]
    wide = max(sizes) - min(sizes) >= DECADES or (len(known) < 3 and estimate.identified == "weak")
    far = max(map(abs, sizes))
    return far > MOST_DIGITS or (wide and far > LONG)


def power(value: float) -> str:
    """A positive number as a power of ten.

    Examples:
        >>> power(3e98), power(2e-5)
        ('10^98.5', '10^-4.7')
    """
    return f"10^{math.log10(value):.1f}"


def spans(laws: Mapping[str, float]) -> str:
    """A note on the laws that bands outside the measured range include, with their shares."""
    return f"beyond the measured range, bands include laws that fit about as well inside it: {shares(laws)}"


def shares(laws: Mapping[str, float]) -> str:
    """Laws and their shares in whole per cent that add up to 100 (largest remainder method)."""
    total = sum(laws.values()) or 1.0
    exact = {name: 100 * share / total for name, share in laws.items()}
    whole = {name: int(share) for name, share in exact.items()}
    for name in sorted(exact, key=lambda name: whole[name] - exact[name])[: 100 - sum(whole.values())]:
        whole[name] += 1
    return ", ".join(f"{name} ({share}%)" for name, share in whole.items() if share)


def comparison_text(label: str, ranked: Sequence[Mapping[str, Any]]) -> str:
    """A table that compares the laws fitted to one data set, given rows of `rank_laws`."""
    table: list[tuple[str, ...]] = [("law", "AICc", "above best", "error on left-out runs, nats/token")]
    for row in ranked:
        left = (row["leave_one_run_out"] or {}).get("rmse", {})
        errors = ", ".join(f"{k} {number(v)}" for k, v in left.items()) or "-"
        table.append((row["law"], f"{row['aicc']:.1f}", f"{row['delta_aicc']:.1f}", errors))
    note = "AICc treats steps of a run as independent and compares only laws for the same outputs and rows."
    if len({tuple(row["outputs"]) for row in ranked}) < len({(*row["outputs"], row["n_points"]) for row in ranked}):
        table = [
            (*cells, rows) for cells, rows in zip(table, ("rows", *(f"{r['n_points']:,}" for r in ranked)), strict=True)
        ]
    return f"{label}: which law?\n{aligned(table)}\n{note}"


def extrapolation_text(tests: Sequence[Mapping[str, Any]]) -> str:
    """A table of extrapolation tests, one line per test and output."""
    table = [("data set", "law", "fitted to", "predicted to", "output", "error", "bias", "half band")]
    for t in tests:
        span = (f"{t['axis']} {number(t['fitted_to'])}", number(t["tested_to"]))
        for output in t["rmse"]:
            figures = (number(t[k][output]) for k in ("rmse", "bias", "band"))
            table.append((t["dataset"], t["law"], *span, output, *figures))
    return f"extrapolation (root mean square error, bias, and half the predicted band; nats/token)\n{aligned(table)}"


_LATEX = {c: "\\" + c for c in "_%&#${}"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
}


def _tex(content: str) -> str:
    text = "".join(_LATEX.get(c, c) for c in content)
    return re.sub(r"\b10\\textasciicircum\{\}(-?[\d.]+)", r"$10^{\1}$", text)


def latex(shown: Shown, r2: Mapping[str, float]) -> str:
    """A tabular for the booktabs package: parameters with their intervals, R2 by output."""
    name, value, interval, _ = (_tex(c) for c in shown.columns)
    lines = [r"\begin{tabular}{lrr}", r"\toprule", rf"{name} & {value} & {interval} \\", r"\midrule"]
    lines += [rf"{_tex(k)} & {_tex(v)} & {_tex(s.replace(' to ', '--'))} \\" for k, v, s, _ in shown.rows]
    lines += [rf"$R^2$ {_tex(k)} & {number(v)} & \\" for k, v in r2.items()]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

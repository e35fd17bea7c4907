"""A fit as plain text, as a rich table, as HTML and as LaTeX: the same content, read from one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from forgetting.analysis.fit.estimate import BOUND, Estimate
from forgetting.display.tables import Shown, aligned


def number(value: float) -> str:
    """Five significant digits, or a dash for what is not known."""
    return f"{value:.5g}" if math.isfinite(value) else "-"


def span(low: float, high: float) -> str:
    """An interval, with as many digits as tell its ends apart, or a dash."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "-"
    digits = next((d for d in range(5, 17) if low == high or f"{low:.{d}g}" != f"{high:.{d}g}"), 17)
    return f"{low:.{digits}g} to {high:.{digits}g}"


def value(estimate: Estimate, *, scale: bool) -> str:
    """A parameter's value, or that the data do not determine it, or that it is larger or smaller than any number."""
    if estimate.identified == "none":
        return "not determined"
    if math.isinf(estimate.value) or (scale and estimate.value == 0):
        return "outside the range of numbers; only its ratio matters"
    return number(estimate.value)


def ends(estimate: Estimate) -> str:
    """A parameter's interval, one side of it where the data limit it there alone, that it is at a bound, or a dash."""
    if estimate.identified == "none":
        return "-"
    if estimate.identified == BOUND:
        return "at its bound"
    low, high = math.isfinite(estimate.low), math.isfinite(estimate.high)
    if low and high:
        return span(estimate.low, estimate.high)
    return f"at least {number(estimate.low)}" if low else f"at most {number(estimate.high)}" if high else "-"


def spans(laws: Mapping[str, float]) -> str:
    """Which laws a band outside the measured range spans, with their shares."""
    return f"beyond the measured range, bands include laws that fit about as well inside it: {shares(laws)}"


def shares(laws: Mapping[str, float]) -> str:
    """Laws and their shares in one line, in whole percents that add up to 100 (by largest remainders)."""
    total = sum(laws.values()) or 1.0
    exact = {name: 100 * share / total for name, share in laws.items()}
    whole = {name: int(share) for name, share in exact.items()}
    for name in sorted(exact, key=lambda name: whole[name] - exact[name])[: 100 - sum(whole.values())]:
        whole[name] += 1
    return ", ".join(f"{name} ({share}%)" for name, share in whole.items() if share)


def comparison_text(label: str, ranked: Sequence[Mapping[str, Any]]) -> str:
    """Laws of one table side by side."""
    table = [("law", "AICc", "above best", "error on a run left out, nats/token")]
    for row in ranked:
        left = (row["leave_one_run_out"] or {}).get("rmse", {})
        errors = ", ".join(f"{k} {number(v)}" for k, v in left.items()) or "-"
        table.append((row["law"], f"{row['aicc']:.1f}", f"{row['delta_aicc']:.1f}", errors))
    note = "AICc treats steps of a run as independent and compares only laws for the same outputs."
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


_LATEX = {c: "\\" + c for c in "_%&#${}"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
}


def _tex(content: str) -> str:
    return "".join(_LATEX.get(c, c) for c in content)


def latex(shown: Shown, r2: Mapping[str, float]) -> str:
    """A tabular for the booktabs package: parameters with their intervals, R2 by output."""
    name, value, interval, _ = (_tex(c) for c in shown.columns)
    lines = [r"\begin{tabular}{lrr}", r"\toprule", rf"{name} & {value} & {interval} \\", r"\midrule"]
    lines += [rf"{_tex(k)} & {_tex(v)} & {_tex(s.replace(' to ', '--'))} \\" for k, v, s, _ in shown.rows]
    lines += [rf"$R^2$ {_tex(k)} & {number(v)} & \\" for k, v in r2.items()]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

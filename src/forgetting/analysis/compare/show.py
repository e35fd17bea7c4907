"""A comparison as text for a terminal."""

from __future__ import annotations

import textwrap

from forgetting.analysis.compare.beyond import LAWS as EQUATIONS
from forgetting.analysis.compare.beyond import PAPER
from forgetting.analysis.compare.contest import Contest
from forgetting.analysis.compare.result import Comparison
from forgetting.analysis.compare.words import cost, frontier_words, number, reach, sentence, span
from forgetting.analysis.fit.show import aligned

WIDTH = 96


def comparison_text(comparison: Comparison) -> str:
    """Savings, prices, frontier and Appendix B of every data set."""
    parts = [_contest(c) for c in comparison.contests.values()]
    parts += [f"{name}: nothing compared: {why}" for name, why in comparison.without.items()]
    if comparison.beyond:
        parts.append(_beyond(comparison))
    return "\n\n".join(parts)


def _contest(c: Contest) -> str:
    head = ("", "saved", "at the end", "over ranks", "Holm p", "compared", "seeds")
    rows = [head]
    for one in c.contenders:
        between = f"{number(one.high)} to {number(one.low)}" if one.price else "-"
        p = number(one.adjusted_p)
        rows.append(
            (str(one.key), span(one.saving), span(one.final), span(one.over_ranks), p, between, str(len(one.seeds)))
        )
    title = f"{c.dataset}: nats/token of forgetting saved at equal {c.axis.name}, against {c.reference}"
    lines = [title, f"({c.confidence:.0%} intervals; above 0 is better than stopping the reference early)", ""]
    lines += [aligned(rows), ""]
    for one in c.contenders:
        said = [sentence(one, c), reach(one, c)]
        said.append(f"against {one.against}" + (f": {paid}" if (paid := cost(one)) else ""))
        lines.append(_wrapped(f"{one.key}: " + "; ".join(s for s in said if s)))
    lines += ["", _wrapped(f"Pareto frontier: {frontier_words(c.points)}")]
    lines += [_wrapped(f"note: {note}") for note in c.notes]
    return "\n".join(lines)


def _beyond(comparison: Comparison) -> str:
    lines = [f"Do the laws fitted on {comparison.reference} hold for the other methods' plain runs (Appendix B)?", ""]
    rows = [("", "law", "R2", f"R2 on {comparison.reference}", "measured - predicted", "runs")]
    for name, found in comparison.beyond.items():
        rows += [
            (f"{name}: {r.label}", EQUATIONS[r.law], number(r.r2), number(r.reference_r2), number(r.bias), str(r.runs))
            for r in found
        ]
    paper = " and ".join(f"{value:.4f} ({EQUATIONS[law]})" for law, value in PAPER.items())
    return "\n".join([*lines, aligned(rows), f"In the paper, over all its other methods together: {paper}."])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)

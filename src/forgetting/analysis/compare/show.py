"""A comparison as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from forgetting.analysis.compare.beyond import LAWS as EQUATIONS
from forgetting.analysis.compare.beyond import PAPER, Beyond
from forgetting.analysis.compare.contest import Contest
from forgetting.analysis.compare.words import cost, frontier_words, number, reach, sentence, span
from forgetting.analysis.fit.show import aligned

WIDTH = 96


def contest_text(c: Contest) -> str:
    """Savings, prices and the frontier of one data set."""
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


def beyond_text(reference: str, beyond: Mapping[str, Sequence[Beyond]]) -> str:
    """Appendix B of every data set, the laws being fitted on the reference."""
    lines = [f"Do the laws fitted on {reference} hold for the other methods' plain runs (Appendix B)?", ""]
    rows = [("", "law", "R2", f"R2 on {reference}", "measured - predicted", "runs")]
    for name, found in beyond.items():
        rows += [
            (f"{name}: {r.label}", EQUATIONS[r.law], number(r.r2), number(r.reference_r2), number(r.bias), str(r.runs))
            for r in found
        ]
    paper = " and ".join(f"{value:.4f} ({EQUATIONS[law]})" for law, value in PAPER.items())
    return "\n".join([*lines, aligned(rows), f"In the paper, over all its other methods together: {paper}."])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)

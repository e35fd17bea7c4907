"""A contender's result in words, the same in the terminal, the report and JSON."""

from __future__ import annotations

import math

from forgetting.analysis.compare.contest import BEYOND, CORRECTED, COSTS, NEVER, NONE, SAVES, Contender, Contest
from forgetting.analysis.compare.estimate import Estimate
from forgetting.analysis.compare.pareto import Point
from forgetting.analysis.compare.source import Key

UNIT = "nats/token"


def number(value: float) -> str:
    """Three decimals: thousandths of a nat are the least that measurements tell apart. A dash where unknown."""
    return f"{value:.3f}".replace("-0.000", "0.000") if math.isfinite(value) else "-"


def span(e: Estimate, *, turned: bool = False) -> str:
    """`0.103 [0.081, 0.125]`; turned, what is saved becomes what is lost."""
    if not math.isfinite(e.value):
        return "-"
    value, low, high = (-e.value, -e.high, -e.low) if turned else (e.value, e.low, e.high)
    return number(value) + (f" [{number(low)}, {number(high)}]" if e.known else "")


def sentence(c: Contender, contest: Contest) -> str:
    """What was found, in one sentence without a subject."""
    axis, saving = contest.axis, c.saving
    tested = sum(one.saving.known for one in contest.contenders)
    match c.verdict:
        case verdict if verdict == SAVES:
            return f"saves {span(saving)} nats at equal {axis.name}"
        case verdict if verdict == COSTS:
            return (
                f"costs {span(saving, turned=True)} nats at equal {axis.name}: stopping the reference early is better"
            )
        case verdict if verdict == NONE:
            return f"no evidence that it beats early stopping ({span(saving)} nats at equal {axis.name})"
        case verdict if verdict == CORRECTED:
            return (
                f"no evidence that it beats early stopping, after correction for {tested} contenders "
                f"({span(saving)} nats by itself; Holm's p {c.adjusted_p:.2g})"
            )
        case verdict if verdict == NEVER:
            return f"never reaches this {axis.name}: {number(c.best)} at best, where the reference is better throughout"
        case verdict if verdict == BEYOND:
            return f"the reference never reaches its {axis.name}: {number(c.reference_best)} at best"
    if math.isnan(saving.value):
        return f"not comparable: {saving.why}"
    way, value = ("less", saving.value) if saving.value >= 0 else ("more", -saving.value)
    return f"forgot {number(value)} nats {way} at equal {axis.name}; no interval: {saving.why}"


def reach(c: Contender, contest: Contest) -> str:
    """Whether it gets as far as the reference; empty where it does."""
    if c.reaches_last or c.verdict == NEVER:
        return ""
    name = contest.axis.name
    return f"never reaches the reference's best {name}, {number(c.reference_best)}: {number(c.best)} at best"


def cost(c: Contender) -> str:
    """What the best common loss cost beside the reference, in steps, time and memory; empty where unknown."""
    p = c.price
    if p is None or not (math.isfinite(p.steps) and math.isfinite(p.reference_steps)):
        return ""
    parts = [f"to {number(p.loss)} {p.steps:.0f} steps where that took {p.reference_steps:.0f}"]
    if math.isfinite(p.seconds) and p.reference_seconds > 0:
        parts.append(f"{p.seconds / p.reference_seconds:.2f} times its time")
    if math.isfinite(p.memory - p.reference_memory):
        # a difference: on a CPU it is the whole process, of which libraries and data are the same
        parts.append(f"{p.memory - p.reference_memory:+.0f} MiB of memory")
    return ", ".join(parts)


def frontier_words(points: list[Point]) -> str:
    """Which curves hold the frontier, with how many of their points, and how sure that is."""
    held: dict[Key, list[Point]] = {}
    for p in points:
        if p.front:
            held.setdefault(p.key, []).append(p)
    total = {p.key: sum(q.key == p.key for q in points) for p in points}
    said = []
    for key, mine in sorted(held.items(), key=lambda item: -len(item[1])):
        share = sum(p.seeds for p in mine) / len(mine)
        runs = mine[0].runs
        sure = f"; {share:.0%} of them also within the {runs} seeds alone" if runs > 1 else "; one seed"
        said.append(f"{key} ({len(mine)} of {total[key]} points{sure})")
    return "; ".join(said)

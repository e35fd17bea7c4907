"""A contender's result in words, the same in the terminal, the report and JSON."""

from __future__ import annotations

import math

from forgetting.analysis.compare.contest import (
    BEYOND,
    CORRECTED,
    COSTS,
    NEVER,
    NO_LINE,
    NONE,
    SAVES,
    Contender,
    Contest,
)
from forgetting.analysis.compare.estimate import Estimate
from forgetting.analysis.compare.pareto import Point
from forgetting.analysis.compare.source import Key
from forgetting.display.numbers import several

UNIT = "nats/token"


def number(value: float) -> str:
    """A number with three decimals, because measurements resolve nothing below 0.001 nats; a dash if unknown."""
    return f"{value:.3f}".replace("-0.000", "0.000") if math.isfinite(value) else "-"


def span(e: Estimate, *, turned: bool = False) -> str:
    """An estimate such as `0.103 [0.081, 0.125]`; `turned` changes its sign, from saved to lost."""
    if not math.isfinite(e.value):
        return "-"
    value, low, high = (-e.value, -e.high, -e.low) if turned else (e.value, e.low, e.high)
    return number(value) + (f" [{number(low)}, {number(high)}]" if e.known else "")


def sentence(c: Contender, contest: Contest) -> str:
    """The finding, in one sentence whose subject, the contender, is left out."""
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
                f"no evidence that it beats early stopping, after correction for {several(tested, 'contender')} "
                f"({span(saving)} nats before it; Holm's p {c.adjusted_p:.2g})"
            )
        case verdict if verdict == NEVER:
            return (
                f"never reaches the reference's {axis.name}: {number(c.best)} at best; the reference is always better"
            )
        case verdict if verdict == BEYOND:
            return f"the reference never reaches its {axis.name}: {number(c.reference_best)} at best"
        case verdict if verdict == NO_LINE:
            return f"cannot be judged, because the reference is not a line; {raw_words(c, axis.name)}"
    if math.isnan(saving.value):
        return f"not comparable: {saving.why}"
    side, value = ("below", saving.value) if saving.value >= 0 else ("above", -saving.value)
    scatter = math.nan if contest.trend is None else contest.trend.scatter
    if value <= scatter:
        return (
            f"no clear difference: {number(value)} nats {side} the reference at equal {axis.name}, within the "
            f"scatter of its runs, {number(scatter)}; no interval: {saving.why}"
        )
    return f"measured {number(value)} nats {side} the reference at equal {axis.name}; no interval: {saving.why}"


def raw_words(c: Contender, axis: str) -> str:
    """`0.106 [0.040, 0.172] nats above the reference's mean, at 0.019 higher test accuracy`."""
    above = c.raw.value < 0
    side, way = "above" if above else "below", "lower" if c.raw_axis < 0 else "higher"
    return f"{span(c.raw, turned=above)} nats {side} the reference's mean, at {number(abs(c.raw_axis))} {way} {axis}"


def line_words(c: Contest) -> str:
    """How well the reference's line explains its forgetting; empty if the reference has one curve."""
    if c.trend is None or c.pooled is None:
        return ""
    t = c.trend
    points = "" if t.points == t.runs else f", {several(t.points, 'measurement')}"
    of = f"{several(len(c.references), 'curve')}, {several(t.runs, 'run')}{points}"
    return (
        f"{c.pooled.form} through {c.reference}: R² {share(t.r2)}, scatter {number(t.scatter)} nats, slope "
        f"{span(t.slope)} nats per unit of {c.axis.name} ({of})"
    )


def flat_words(c: Contest) -> str:
    """The consequence if the reference is not a line; empty if it is one."""
    if not c.flat:
        return ""
    return (
        f"not a line: in these runs its slope is not clearly different from 0, so forgetting at equal "
        f"{c.axis.name} cannot be judged against it, and nothing is ranked"
    )


def share(value: float) -> str:
    """R² with four decimals; a dash if unknown."""
    return f"{value:.4f}" if math.isfinite(value) else "-"


def reach(c: Contender, contest: Contest) -> str:
    """How far the contender falls short of the reference's best; empty if it reaches it."""
    if c.reaches_last or c.verdict == NEVER:
        return ""
    name = contest.axis.name
    return f"never reaches the reference's best {name}, {number(c.reference_best)}: {number(c.best)} at best"


def cost(c: Contender) -> str:
    """Cost of the best common loss compared with the reference, in steps, time and memory; empty if unknown."""
    p = c.price
    if p is None or not (math.isfinite(p.steps) and math.isfinite(p.reference_steps)):
        return ""
    said = f"reaches {number(p.loss)} in {several(p.steps, 'step')} (reference: {p.reference_steps:,.0f})"
    parts = []
    if math.isfinite(p.seconds) and p.reference_seconds > 0:
        parts.append(f"in {p.seconds / p.reference_seconds:.2f} times the reference's time")
    if math.isfinite(p.memory - p.reference_memory):
        # a difference, because on a CPU it is the memory of the whole process, with the same libraries and data
        more = round(p.memory - p.reference_memory)
        parts.append(
            f"with {abs(more):,} MiB {'more' if more > 0 else 'less'} memory" if more else "with as much memory"
        )
    return ", ".join([said, " and ".join(parts)]) if parts else said


def frontier_words(points: list[Point]) -> str:
    """The curves on the frontier, with how many of their points, and in which share of the seeds alone."""
    held: dict[Key, list[Point]] = {}
    for p in points:
        if p.front:
            held.setdefault(p.key, []).append(p)
    total = {p.key: sum(q.key == p.key for q in points) for p in points}
    said = []
    for key, mine in sorted(held.items(), key=lambda item: -len(item[1])):
        share = sum(p.seeds for p in mine) / len(mine)
        runs = mine[0].runs
        sure = f"; also in {share:.0%} of the {runs} seeds, on average" if runs > 1 else "; one seed"
        said.append(f"{key} ({len(mine)} of {several(total[key], 'point')}{sure})")
    return "; ".join(said)

"""Tests whether the law misses single measured steps: the mean of all runs there, and of each number of parameters.

A law may be right on average and still miss, say, the first steps after the warm-up. A test of a bend sees that only if
the residuals bend over the whole range. The tests are those of `misfit`, with a pattern of ones at the rows of one
place. P values are corrected together for the means of all runs, and separately for those by number of parameters.

Runs of one seed see the data in the same order and deviate together, so the mean of all runs at a step is tested by
seeds if these are known, with at least LEAST of them. A run without a seed counts as a seed of its own, and so does a
group of runs of several seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from forgetting.analysis.fit.bootstrap import MIN_RUNS
from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.misfit import LEVEL, MOST_ROWS, tests_of
from forgetting.analysis.fit.runwise import evenly_spaced
from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.laws.base import Array
from forgetting.display.numbers import number, several
from forgetting.measuring.estimate import holm

STEP = "step"
LEAST = 3
"""Fewest runs, or seeds, at a place; the mean of fewer has no useful standard error."""
FEW_STEPS = 4
"""With fewer measured steps, the law's form along a run cannot be tested."""
NEGLIGIBLE = 0.01
"""Differences below this share of the measured range of an output cause no warning."""
MOST = 100
"""Most places tested; if there are more, evenly spaced steps are chosen."""
TOGETHER = 8
"""Places tested at a time, to bound memory."""


@dataclass(frozen=True)
class Place:
    """The test of one output at one place.

    Attributes:
        output: output of the law.
        x: the law's variables there; only the step for the mean of all runs.
        runs: number of runs measured there.
        law: the law's mean for these runs, in the output's unit.
        size: how far the mean of the measurements is above it.
        se: standard error of `size`.
        spread: the output's measured range.
        p: p value of this test alone.
        p_holm: p value corrected for all tests of its kind: means of all runs, or by number of parameters.
    """

    output: str
    x: dict[str, float]
    runs: int
    law: float
    size: float
    se: float
    spread: float
    p: float
    p_holm: float = 1.0

    @property
    def mean(self) -> float:
        """The mean of the measurements."""
        return self.law + self.size

    @property
    def contradicts(self) -> bool:
        """Whether the measurements contradict the law, by more than a negligible share of their range."""
        return self.p_holm < LEVEL and abs(self.size) >= NEGLIGIBLE * self.spread

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the measured mean and the verdict."""
        return {**asdict(self), "mean": self.mean, "contradicts": self.contradicts}

    def where(self) -> str:
        """The place in words."""
        rest = [f"{name.replace('_', ' ')} {value:,.6g}" for name, value in self.x.items() if name != STEP]
        return ", ".join([f"step {self.x[STEP]:,.6g}", *rest])


def places(problem: Problem, theta: Array, data: Data, weights: Array) -> list[Place]:
    """All tests of a least-squares fit over steps; empty for fewer than MIN_RUNS runs or another objective.

    Objectives of logarithms are not tested, because their mean residual is not that of the measurements.

    Args:
        problem: law in fitted coordinates and objective; its rows are not used.
        theta: [K] the best fit.
        data: the table.
        weights: [O, n] weights.
    """
    objective = problem.objective
    if not objective.quadratic or objective.log or len(data.runs) < MIN_RUNS or STEP not in data.x:
        return []
    data, weights = evenly_spaced(data, weights, MOST_ROWS)
    part = Problem(problem.law, data.x, problem.objective, problem.held)
    law = part.values(theta[None])[0].reshape(data.y.shape)
    out: list[Place] = []
    for cells, units in ((False, by_seed(data)), (True, data)):
        chosen, found = list(_rows(units, cells=cells)), list[Place]()
        for first in range(0, len(chosen), TOGETHER):
            found += _tested(part, theta, units, weights, law, chosen[first : first + TOGETHER])
        out += [replace(one, p_holm=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]
    return out


def _tested(
    problem: Problem,
    theta: Array,
    data: Data,
    weights: Array,
    law: Array,
    chosen: Sequence[tuple[dict[str, float], Array]],
) -> list[Place]:
    """The tests at some places, given the law's [O, n] values."""
    outputs = problem.law.outputs
    columns = []
    for i, (_, rows) in enumerate(chosen):
        for o, name in enumerate(outputs):
            pattern = np.zeros(data.y.shape)
            pattern[o] = rows
            columns.append((name, STEP, str(i), pattern))
    out = []
    for _, name, one in tests_of(problem, theta, data, weights.reshape(-1), columns):
        at, rows = chosen[int(name)]
        o = outputs.index(one.output)
        mean = float(np.average(law[o, rows], weights=weights[o, rows]))
        size, se = one.slope * one.share, one.slope_se * one.share
        out.append(Place(one.output, at, int(rows.sum()), mean, size, se, float(np.ptp(data.y[o])), one.p))
    return out


def by_seed(data: Data) -> Data:
    """The data with seeds instead of runs; a run without a seed, or a group of several, counts as a seed of its own."""
    seeds = data.columns.get("seed")
    if seeds is None:
        return data
    known = np.isfinite(seeds)
    run, own = data.run[known], seeds[known].astype(int)
    first, seed = np.full(len(data.runs), np.iinfo(int).max), np.full(len(data.runs), -1)
    np.minimum.at(first, run, own)
    np.maximum.at(seed, run, own)
    alone = np.arange(len(data.runs)) + seed.max() + 1
    unit = np.unique(np.where(first != seed, alone, seed), return_inverse=True)[1]
    return replace(data, run=unit[data.run], runs=tuple(map(str, range(int(unit.max()) + 1))))


def _rows(data: Data, *, cells: bool) -> Iterator[tuple[dict[str, float], Array]]:
    """The variables and [n] mask of rows of each place with at least LEAST runs: whole steps, or their cells."""
    first, cell = data.cells
    steps = np.unique(data.x[STEP])
    each = len(first) / len(steps) + 1
    few = min(len(steps), max(2, int(MOST / each)))
    for step in steps[np.linspace(0, len(steps) - 1, few).round().astype(int)]:
        rows = data.x[STEP] == step
        own = np.unique(cell[rows])
        for one in own if cells else [-1] * (len(own) > 1):
            mask = cell == one if cells else rows
            if np.unique(data.run[mask]).size >= LEAST:
                names = data.x if cells else [STEP]
                yield {name: float(data.x[name][np.argmax(mask)]) for name in names}, mask


def few_steps(data: Data) -> list[float]:
    """The measured steps if there are fewer than FEW_STEPS; otherwise empty."""
    steps = np.unique(data.x.get(STEP, [])).tolist()
    return steps if len(steps) < FEW_STEPS else []


def plain_places(found: Sequence[Place]) -> list[dict[str, Any]]:
    """The tests as dictionaries."""
    return [asdict(one) for one in found]


def places_of(diagnostics: Mapping[str, Any]) -> list[Place]:
    """The tests in a fit's diagnostics; empty for a fit that was stored without them."""
    return [Place(**one) for one in diagnostics.get("places") or []]


def alarms(found: Sequence[Place]) -> list[str]:
    """A warning if measurements at any place contradict the law; else empty."""
    wrong = [one for one in found if one.contradicts]
    if not wrong:
        return []
    worst = _most_different(wrong)
    side = "above" if worst.size > 0 else "below"
    unit = " nats/token" if worst.output in ("finetune_loss", "forgetting_loss", "forgetting") else ""
    size = f"{number(abs(worst.size))} ± {number(worst.se, 1)}{unit}"
    said = (
        f"the law misses measured steps: {worst.output} is {size} {side} the law at {worst.where()} "
        f"(mean of {several(worst.runs, 'run')}; p = {worst.p_holm:.1g})"
    )
    more = len(wrong) - 1
    rest = f", and {more} more of {len(found)} tests {'finds' if more == 1 else 'find'} a difference" if more else ""
    return [f"{said}{rest}; its mean and the band of its mean are wrong there"]


def _most_different(wrong: Sequence[Place]) -> Place:
    """The place that differs most; the mean of all runs at its step if that differs at least half as much."""
    worst = max(wrong, key=lambda one: abs(one.size) / one.spread if one.spread > 0 else np.inf)
    whole = [one for one in wrong if one.output == worst.output and one.x == {STEP: worst.x[STEP]}]
    return next((one for one in whole if 2 * one.size / worst.size >= 1), worst)

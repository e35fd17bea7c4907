"""The Pareto frontier over all curves: points that no other point beats in both losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forgetting.analysis.compare.source import Axis, Key, Run


@dataclass(frozen=True)
class Point:
    """One measured step (or alpha) of one curve, averaged over its runs.

    Attributes:
        key: the curve.
        place: its index among the curve's points.
        step: update steps.
        loss: mean fine-tuning loss (or accuracy), as in the table.
        forgetting: mean forgetting, nats/token.
        loss_se, forgetting_se: standard errors of the means between runs; NaN for a single run.
        runs: number of runs.
        seeds: share of the seeds in whose own runs this point is also on the frontier.
        front: whether it is on the frontier of the means.
    """

    key: Key
    place: int
    step: float
    loss: float
    forgetting: float
    loss_se: float
    forgetting_se: float
    runs: int
    seeds: float
    front: bool


def frontier(curves: Mapping[Key, Sequence[Run]], axis: Axis) -> list[Point]:
    """Every curve's points, marked if on the frontier of the means, and in how many seeds' own.

    A curve has a point for each measured step that all its runs have.
    """
    means: list[tuple[Key, int, float, np.ndarray, np.ndarray]] = []
    for key, runs in curves.items():
        for i in range(min(run.x.size for run in runs)):
            x, y = np.array([run.x[i] for run in runs]), np.array([run.y[i] for run in runs])
            means.append((key, i, float(runs[0].step[i]), x, y))
    front = undominated([(float(x.mean()), float(y.mean())) for _, _, _, x, y in means])
    share = _by_seed(curves)
    made = []
    for number, (key, i, step, x, y) in enumerate(means):
        point = Point(
            key,
            i,
            step,
            axis.shown(float(x.mean())),
            float(y.mean()),
            _se(x),
            _se(y),
            x.size,
            share[key, i] / x.size,
            number in front,
        )
        made.append(point)
    return made


def undominated(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of the points for which no other is as low in both coordinates and lower in one."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    kept: set[int] = set()
    best, at = math.inf, math.inf
    for i in order:
        x, y = points[i]
        # the first point at an x has its lowest y; an exact duplicate of a kept point is not dominated either
        if y < best or (y == best and x == at):
            kept.add(i)
            best, at = y, x
    return kept


def _by_seed(curves: Mapping[Key, Sequence[Run]]) -> dict[tuple[Key, int], int]:
    """In how many of its seeds a curve's point is on the frontier of that seed's runs alone."""
    tally: dict[tuple[Key, int], int] = {}
    for seed in _seeds(curves.values()):
        mine = [(key, run) for key, runs in curves.items() for run in runs if run.seed == seed]
        places = [(key, i, run) for key, run in mine for i in range(run.x.size)]
        front = undominated([(float(run.x[i]), float(run.y[i])) for _, i, run in places])
        for number, (key, i, _) in enumerate(places):
            tally[key, i] = tally.get((key, i), 0) + (number in front)
    return tally


def _seeds(groups: Iterable[Sequence[Run]]) -> list[str]:
    return list(dict.fromkeys(run.seed for runs in groups for run in runs))


def _se(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan

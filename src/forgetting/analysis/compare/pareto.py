"""The Pareto frontier over all curves: the points that no other point dominates in both losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forgetting.analysis.compare.source import Axis, Key, Run
from forgetting.analysis.laws.base import Array


@dataclass(frozen=True)
class Point:
    """One measured step (or alpha) of one curve, averaged over its runs.

    Attributes:
        key: the curve.
        place: index among the curve's points.
        step: update steps; NaN if unknown, or if they differ between the runs.
        loss: mean fine-tuning loss (or accuracy), in the table's direction.
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
    """The points of all curves, with whether each is on the frontier, of the means and of each seed's own runs.

    A curve has a point for each measured step (or alpha) that all its runs have.
    """
    means: list[tuple[Key, int, Array, Array, Array]] = []
    shares: list[float] = []
    alone = _fronts_by_seed(curves)
    for key, runs in curves.items():
        for place, at in enumerate(_common(runs)):
            pairs = list(zip(runs, at, strict=True))
            step, x, y = (np.array([getattr(run, name)[i] for run, i in pairs]) for name in ("step", "x", "y"))
            means.append((key, place, step, x, y))
            shares.append(sum((key, run.seed, i) in alone for run, i in pairs) / len(runs))
    front = undominated([(float(x.mean()), float(y.mean())) for *_, x, y in means])
    return [
        Point(
            key,
            place,
            float(step[0]) if (step == step[0]).all() else math.nan,
            axis.shown(float(x.mean())),
            float(y.mean()),
            _se(x),
            _se(y),
            x.size,
            shares[number],
            number in front,
        )
        for number, (key, place, step, x, y) in enumerate(means)
    ]


def _common(runs: Sequence[Run]) -> list[tuple[int, ...]]:
    """The measured steps (or alphas) that all runs of a curve have, each as its index in every run.

    Runs with a single measurement have it in common at any step: it is their last.
    """
    if all(run.x.size == 1 for run in runs):
        return [(0,) * len(runs)]
    marks = [run.alpha if run.interpolated else np.nan_to_num(run.step, nan=-1.0) for run in runs]
    places = [{mark: i for i, mark in enumerate(own.tolist())} for own in marks]
    return [tuple(own[mark] for own in places) for mark in places[0] if all(mark in own for own in places)]


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


def _fronts_by_seed(curves: Mapping[Key, Sequence[Run]]) -> set[tuple[Key, str, int]]:
    """Curve, seed and index of each measurement that is on the frontier of its seed's runs alone."""
    found: set[tuple[Key, str, int]] = set()
    for seed in _seeds(curves.values()):
        mine = [(key, run) for key, runs in curves.items() for run in runs if run.seed == seed]
        places = [(key, i, run) for key, run in mine for i in range(run.x.size)]
        front = undominated([(float(run.x[i]), float(run.y[i])) for _, i, run in places])
        found |= {(places[number][0], seed, places[number][1]) for number in front}
    return found


def _seeds(groups: Iterable[Sequence[Run]]) -> list[str]:
    return list(dict.fromkeys(run.seed for runs in groups for run in runs))


def _se(values: Array) -> float:
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan

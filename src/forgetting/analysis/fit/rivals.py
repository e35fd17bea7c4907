"""Rival laws that fit about as well inside the measured range; outside it, bands include them.

A band from resamples of one law ignores that the law may be wrong, which is what matters outside the measured range.
The rivals are polynomials of degree two in the variables or their logarithms, without theory: one with squares of only
those variables that vary within a run, and one with all squares. Laws are weighted by their errors on left-out runs,
exp(-1/2 sum over runs of (error / scatter)^2), with equal weight per run: weights by predictive likelihood (Yao,
Vehtari, Simpson & Gelman 2018, doi:10.1214/17-BA1091). Each law contributes its share of the draws, from the same
bootstrap of whole runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Self

import numpy as np

from forgetting.analysis.fit.bootstrap import MIN_RUNS, signs
from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.runwise import evenly_spaced, grams, pull_of_runs
from forgetting.analysis.fit.validate import FOLDS
from forgetting.analysis.laws.base import Array, Law
from forgetting.analysis.laws.quadratic import Axis, QuadraticSurface

MOST_ROWS = 50_000
"""Most rows used; of a larger table, evenly spaced runs or rows are chosen."""
TINY = 1e-150
"""Lower limit of the scatter, for laws that fit every row exactly."""
LEAST_VALUES = 3
"""Fewest different values of every variable, so that squares can be fitted; with fewer, there are no rivals."""


@dataclass(frozen=True)
class Rival:
    """Another law for the same outputs.

    Attributes:
        law: a polynomial.
        theta: [K] its best fit.
        draws: [b, K] refits of resampled runs; b is how many draws of a band are from this law.
    """

    law: QuadraticSurface
    theta: Array
    draws: Array

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.law.spec, "theta": self.theta, "draws": self.draws}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: malformed data.
        """
        law = QuadraticSurface.from_spec(data)
        size = len(law.parameters)
        draws = np.array(data["draws"], dtype=float).reshape(-1, size)
        return cls(law, np.array(data["theta"], dtype=float).reshape(size), draws)


def spanned(own: Array, rivals: Sequence[Rival], x: Mapping[str, Array], which: int) -> Array:
    """[B, n] draws of an output from all laws, each with its share.

    Args:
        own: [B, n] draws of the fitted law.
        rivals: the rivals.
        x: [n] values of each variable.
        which: index of the output.
    """
    others = [rival.law.values(rival.draws, x)[:, which] for rival in rivals]
    return np.concatenate([own[: own_share(len(own), rivals)], *others])


def own_share(draws: int, rivals: Sequence[Rival]) -> int:
    """How many draws of a band with rivals are from the fitted law: the first ones of its `draws`."""
    return draws - sum(len(rival.draws) for rival in rivals)


def find_rivals(
    law: Law,
    data: Data,
    weights: Array,
    *,
    missed: Mapping[str, float],
    noise: Mapping[str, float],
    count: int,
    seed: int,
    log: bool = False,
) -> tuple[Rival, ...]:
    """The rivals that have a share in a fitted law's bands outside the measured range; may be empty.

    Args:
        law: the fitted law.
        data: the table.
        weights: [O, n] weights.
        missed: root mean square error of the law on left-out runs, by output.
        noise: scatter of a run around the law, by output.
        count: number of draws of a band.
        seed: random seed of the resamples.
        log: whether logarithms were fitted; then errors, noise and rivals are on the logarithmic scale.
    """
    if len(data.runs) < MIN_RUNS or any(np.unique(v).size < LEAST_VALUES for v in data.x.values()):
        return ()
    part, light = evenly_spaced(data, weights, MOST_ROWS)
    sign = signs(len(part.runs), count, np.random.default_rng([seed, 1]))
    found = [made for terms in _terms(part) if (made := _fit(law, part, light, terms, sign, log)) is not None]
    scale = np.array([max(noise[o], TINY) for o in law.outputs])
    errors = np.array([[error[o] for o in law.outputs] for error in (missed, *(e for _, e in found))])
    square = np.sum((errors / scale) ** 2, axis=1)
    square = np.where(np.isfinite(square), square, np.inf)
    if not np.isfinite(square.min()):
        return ()
    weight = np.exp(-0.5 * len(data.runs) * (square - square.min()))
    shares = np.round(count * weight / weight.sum()).astype(int)[1:]
    return tuple(
        Rival(made.law, made.theta, np.ascontiguousarray(made.draws[:share]))
        for (made, _), share in zip(found, shares, strict=True)
        if share > 0
    )


def _terms(data: Data) -> list[list[tuple[str, ...]]]:
    """Terms of each rival: 1, linear terms, products, and squares of the variables that vary within runs, or of all."""
    names = list(data.x)
    flat: list[tuple[str, ...]] = [(), *((v,) for v in names), *combinations(names, 2)]
    runs = len(data.runs)
    inner = []
    for v in names:
        first = np.zeros(runs)
        first[data.run] = data.x[v]
        if not np.array_equal(first[data.run], data.x[v]):
            inner.append(v)
    sets = [inner, names] if inner and len(inner) < len(names) else [names]
    return [[*flat, *((v, v) for v in squared)] for squared in sets]


def _fit(
    law: Law, data: Data, weights: Array, terms: list[tuple[str, ...]], sign: Array, log: bool
) -> tuple[Rival, dict[str, float]] | None:
    """A polynomial with its draws and its errors on left-out runs; None if single runs or folds determine a term."""
    surface = QuadraticSurface(law.outputs, {v: Axis.of(values) for v, values in data.x.items()}, terms, log=log)
    basis, runs = surface.basis(data.x), len(data.runs)
    folds = min(runs, FOLDS)
    theta, draws, errors = [], [], {}
    measured = np.log(data.y) if log else data.y
    for o, output in enumerate(law.outputs):
        root = np.sqrt(weights[o])
        q, r = np.linalg.qr(basis * root[:, None])
        if np.min(np.abs(np.diag(r))) < 1e-8 * np.max(np.abs(r)):
            return None
        best = q.T @ (measured[o] * root)
        residual = measured[o] * root - q @ best
        gram = grams(np.column_stack([q, residual]), data.run, runs)
        pull, by_runs = pull_of_runs(gram[:, :-1, :-1], gram[:, :-1, -1])
        fold = data.run % folds
        groups = grams(np.column_stack([q, residual]), fold, folds)
        change, by_folds = pull_of_runs(groups[:, :-1, :-1], groups[:, :-1, -1])
        if not (by_runs and by_folds):
            return None
        # the error of a row without its fold is its residual plus the fold's effect on the fit
        missed = (residual + np.einsum("nk,nk->n", q, change[fold])) / np.where(root > 0, root, 1.0)
        errors[output] = float(np.sqrt(np.mean(missed**2)))
        theta.append(np.linalg.solve(r, best))
        draws.append(np.linalg.solve(r, (best + sign @ pull).T).T)
    return Rival(surface, np.concatenate(theta), np.concatenate(draws, axis=1)), errors

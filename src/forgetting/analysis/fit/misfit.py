"""Tests whether the law is wrong, by patterns that its residuals should not have.

The patterns are, for each output: a bend with each variable (the square of its position in the measured range), and for
tables of several data sets a level of each. The test is that of the pattern's coefficient when it is added to the law,
linearised at the fit, so parts that the law's own parameters can explain do not count. Variances are clustered by run
(CR2: Bell & McCaffrey 2002), so steps of a run may be arbitrarily correlated, with Satterthwaite's degrees of freedom
for few runs (Pustejovsky & Tipton 2018, doi:10.1080/07350015.2016.1247004). The p values of a fit's tests are
corrected together (Holm 1979). Single steps are tested in the same way (`places`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from forgetting.analysis.fit import rounding
from forgetting.analysis.fit.bootstrap import MIN_RUNS, free_basis
from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.runwise import DETERMINED, determined_by_one, evenly_spaced, grams
from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.laws.base import Array
from forgetting.analysis.laws.quadratic import Axis
from forgetting.measuring.estimate import holm

LEVEL = 0.05
"""Significance level of all tests of a fit together."""
OWN = 1e-3
"""A pattern is not tested if the law's parameters explain all but this share of it."""
MOST_ROWS = 20_000
"""Most rows used; of a larger table, evenly spaced runs or rows are chosen."""
LEAST_VALUES = 4
"""Fewest different values of a variable for the test of a bend."""
BEND = "bend"


@dataclass(frozen=True)
class Misfit:
    """One test.

    Attributes:
        output: output of the law.
        kind: `bend` with a variable, or `level` of a data set.
        of: the variable or the data set.
        unit: unit of `size`; empty if it is the output's.
        size: what the law misses: for a bend, how much higher the outputs are at both ends of the measured range
            relative to its middle; else the data set's level.
        se: standard error of `size`.
        p: p value of this test alone.
        p_holm: p value corrected for all tests of the fit.
    """

    output: str
    kind: str
    of: str
    unit: str
    size: float
    se: float
    p: float
    p_holm: float = 1.0

    def sentence(self) -> str:
        """The result as a warning."""
        side = "above" if self.size > 0 else "below"
        unit = f" {self.unit}" if self.unit else ""
        size = f"{self.output} is {abs(self.size):.2g} ± {self.se:.1g}{unit} {side} the law"
        if self.kind == BEND:
            size = f"residuals bend with {self.of}: {size} at both ends of the measured range, relative to its middle"
        else:
            size = f"residuals differ by data set: {size} in '{self.of}'"
        return f"{size} (p = {self.p_holm:.1g}, by runs); the law may not hold outside the measured range"


def misfits(problem: Problem, theta: Array, data: Data, weights: Array) -> list[Misfit]:
    """All tests of a least-squares fit; empty for fewer than MIN_RUNS runs or another objective.

    Args:
        problem: law in fitted coordinates and objective; its rows are not used.
        theta: [K] the best fit.
        data: the table.
        weights: [O, n] weights.
    """
    if not problem.objective.quadratic or len(data.runs) < MIN_RUNS:
        return []
    data, weights = evenly_spaced(data, weights, MOST_ROWS)
    part = Problem(problem.law, data.x, problem.objective, problem.held)
    columns = _columns(problem.law.outputs, data)
    found = [
        Misfit(one.output, kind, name, one.unit, one.slope, one.slope_se, one.p)
        for kind, name, one in tests_of(part, theta, data, weights.reshape(-1), columns)
    ]
    return [replace(one, p_holm=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def alarms(found: Sequence[Misfit]) -> list[str]:
    """Warnings for the tests that the law fails."""
    return [m.sentence() for m in found if m.p_holm < LEVEL]


def plain_misfits(found: Sequence[Misfit]) -> list[dict[str, Any]]:
    """The tests as dictionaries."""
    return [asdict(m) for m in found]


def _columns(outputs: Sequence[str], data: Data) -> list[tuple[str, str, str, Array]]:
    """Output, kind, variable or data set, and [O, n] pattern of each test."""
    directions = []
    for name, values in data.x.items():
        if np.unique(values).size >= LEAST_VALUES:
            directions.append((BEND, name, Axis.of(values).place(values) ** 2))
    sets = data.columns.get("dataset")
    names = [] if sets is None else list(np.unique(sets))
    for name in names[1:] if len(names) < 3 else names:  # two data sets have only one difference
        directions.append(("level", str(name), (sets == name).astype(float)))
    out = []
    for o, output in enumerate(outputs):
        for kind, name, column in directions:
            whole = np.zeros((len(outputs), data.n))
            whole[o] = column
            out.append((output, kind, name, whole))
    return out


@dataclass(frozen=True)
class Tested:
    """The test of one pattern.

    Attributes:
        output: output of the law.
        unit: unit of the sizes; empty if it is the output's.
        slope, slope_se: the pattern's coefficient when it is added to the law, and its standard error.
        share: the share of the pattern that the law's own parameters cannot explain. `slope` times this is the
            residuals' mean over the rows of a pattern of zeros and ones.
        p: p value.
    """

    output: str
    unit: str
    slope: float
    slope_se: float
    share: float
    p: float


def tests_of(
    problem: Problem, theta: Array, data: Data, weights: Array, columns: Sequence[tuple[str, str, str, Array]]
) -> list[tuple[str, str, Tested]]:
    """Test each pattern when added to the law, linearised at theta.

    Patterns that the law explains are left out, those that one run alone determines (such as the level of a data set of
    one run), and those with less than one degree of freedom. Standard errors are at least those of rounding.

    Args:
        problem: law in fitted coordinates, variables of the rows, and objective.
        theta: [K] the best fit.
        data: the table.
        weights: [O * n] weights.
        columns: output, kind, name, and [O, n] pattern of each test.

    Returns:
        Kind, name and result of each test.
    """
    if not columns:
        return []
    run, runs = np.tile(data.run, len(data.y)), len(data.runs)
    root = np.sqrt(weights)
    basis = free_basis(problem, theta, weights)
    size = basis.shape[1]
    residual = problem.objective.residual(data.y.reshape(-1), problem.values(theta[None])[0]) * root
    residual = residual - basis @ (basis.T @ residual)
    rounded = rounding.of_residuals(problem, theta, data.y.reshape(-1)) * root
    tried = np.stack([column.reshape(-1) * root for *_, column in columns], axis=1)
    rest = tried - basis @ (basis.T @ tried)
    length, own = np.linalg.norm(tried, axis=0), np.linalg.norm(rest, axis=0)
    # skip patterns that the law's own parameters explain
    kept = np.flatnonzero(own**2 > OWN * length**2)
    every = grams(np.column_stack([basis, rest[:, kept] / own[kept], residual]), run, runs)
    out = []
    for place, i in enumerate(kept):
        at = [*range(size), size + place]
        gram, pull = every[:, at][:, :, at], every[:, at, -1]
        if determined_by_one(gram):
            continue
        slope = float(pull[:, -1].sum())
        se, freedom = _error(gram, pull - gram[:, :, -1] * slope)
        se = max(se, float(np.abs(rest[:, i]) @ rounded / own[i]))
        if se > 0 and freedom >= 1:
            output, kind, name, _ = columns[int(i)]
            unit = "in the logarithm" if problem.objective.log else "nats/token" if output.endswith("loss") else ""
            found, share = float(own[i]), float((own[i] / length[i]) ** 2)
            p = _two_sided(slope / se, freedom)
            out.append((kind, name, Tested(output, unit, slope / found, se / found, share, p)))
    return out


def _error(gram: Array, pull: Array) -> tuple[float, float]:
    """Standard error of the last coefficient clustered by run (CR2), and Satterthwaite's degrees of freedom.

    Args:
        gram: [R, k, k] products of the orthonormal columns, summed over each run's rows.
        pull: [R, k] products of these columns with the residuals, summed over each run's rows.
    """
    value, turn = np.linalg.eigh(gram)
    # (I - P P')^(-1/2) = I + P M P', where M has the eigenvectors of P' P
    free = value < 1 - DETERMINED
    grow = np.where(free, 1 / np.sqrt(np.where(free, 1 - value, 1.0)) - 1, 0.0)
    inner = (turn * np.where(value > 1e-12, grow / np.maximum(value, 1e-12), 0.5)[:, None, :]) @ turn.swapaxes(1, 2)
    last = gram[:, -1]
    moved = np.einsum("rk,rkl->rl", last, inner)
    score = pull[:, -1] + np.einsum("rk,rk->r", moved, pull)
    cross = last + np.einsum("rk,rkl->rl", moved, gram)
    square = gram[:, -1, -1] + 2 * np.einsum("rk,rk->r", moved, last) + np.einsum("rk,rkl,rl->r", moved, gram, moved)
    # the trace of Omega = diag(square) - cross cross', and of its square, without an [R, R] matrix
    own = np.einsum("rk,rk->r", cross, cross)
    total = float(np.sum(square - own))
    inside = cross.T @ cross
    squares = float(np.sum(square**2) - 2 * np.sum(square * own) + np.sum(inside * inside))
    freedom = total**2 / squares if squares > 0 else 0.0
    return float(np.sqrt(np.sum(score**2))), freedom


def _two_sided(t: float, freedom: float) -> float:
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))

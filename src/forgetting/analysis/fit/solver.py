"""Solves many fits together: batched Levenberg-Marquardt with bounds and variable projection.

Each of S problems has its own starting point, and may have its own data and weights (bootstrap resamples). One
iteration of all problems is a few numpy calls. The solver returns the point, its cost and a measure of stationarity;
`search` decides whether the fit is good.

Shapes: S problems, K parameters, m = O * n residuals (outputs times rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from forgetting.analysis.fit.objective import Objective
from forgetting.analysis.fit.orthogonal import lengths, solved
from forgetting.analysis.laws.base import Array, Law

CHUNK = 1_000_000  # numbers in one Jacobian: 8 MB


@dataclass(frozen=True)
class Problem:
    """A law, the variables of a table, and an objective.

    Attributes:
        law: the law in fitted coordinates.
        x: [n] values for each variable.
        objective: the objective to minimise.
        held: names of parameters that keep their starting values.
    """

    law: Law
    x: Mapping[str, Array]
    objective: Objective
    held: frozenset[str] = frozenset()

    def log_mask(self, natural_linear: bool) -> Array:
        """[K]: which parameters are optimised as logarithms; with `natural_linear`, linear parameters are not."""
        return np.array([p.log and not (natural_linear and p.linear) for p in self.law.parameters])

    @property
    def linear(self) -> Array:
        """[K]: which parameters the law is linear in."""
        return np.array([p.linear for p in self.law.parameters])

    @property
    def fixed(self) -> Array:
        """[K]: which parameters do not move."""
        return np.array([p.gauge is not None or p.name in self.held for p in self.law.parameters])

    @property
    def solvable(self) -> Array:
        """[K]: which parameters have a closed-form least-squares value given the others: linear, without bounds."""
        return np.array(
            [
                p.linear and not p.log and p.gauge is None and p.low == -np.inf and p.high == np.inf
                for p in self.law.parameters
            ]
        )

    @property
    def exact(self) -> bool:
        """Whether this is a least-squares problem whose linear parameters can be solved for at every step."""
        own = self.solvable
        return bool(not self.objective.log and self.objective.quadratic and own.any() and (own == self.linear).all())

    @property
    def direct(self) -> bool:
        """Whether this is `exact` and has no other free parameter, so that there is a closed-form solution."""
        return self.exact and bool((self.linear | self.fixed).all())

    def bounds(self, log: Array) -> tuple[Array, Array]:
        """[K] lower and upper bounds in the optimised coordinates."""
        low = np.array([p.low for p in self.law.parameters])
        high = np.array([p.high for p in self.law.parameters])
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(log, np.log(np.maximum(low, 0)), low), np.where(log, np.log(high), high)

    def movable(self, theta: Array) -> Array:
        """[K]: which coordinates of theta [K] are neither fixed nor at a bound."""
        log = self.log_mask(False)
        low, high = self.bounds(log)
        z = to_z(theta, log)
        return np.asarray((z > low) & (z < high) & ~self.fixed)

    def values(self, theta: Array) -> Array:
        """The law's values, [S, m]."""
        return self.law.values(theta, self.x).reshape(theta.shape[0], -1)

    def gradient(self, theta: Array) -> Array:
        """The law's derivatives, [S, m, K]."""
        return self.law.gradient(theta, self.x).reshape(theta.shape[0], -1, theta.shape[1])


@dataclass(frozen=True)
class Solution:
    """The end points of S problems.

    Attributes:
        theta: [S, K] parameters.
        cost: [S] the objective there.
        slope: [S] largest cosine between the residuals and a free column of the Jacobian: 0 at a stationary point,
            whatever the units.
        iterations: number of iterations of the slowest problem.
    """

    theta: Array
    cost: Array
    slope: Array
    iterations: int


def to_theta(z: Array, log: Array) -> Array:
    """Parameters from optimised coordinates."""
    return np.where(log, np.exp(np.where(log, z, 0.0)), z)


def to_z(theta: Array, log: Array) -> Array:
    """Optimised coordinates from parameters."""
    with np.errstate(divide="ignore"):
        return np.where(log, np.log(np.where(log, theta, 1.0)), theta)


def solve_linear(problem: Problem, theta: Array, y: Array, weights: Array) -> Array:
    """Set the linear parameters of [S, K] points to their weighted least-squares values, ignoring bounds."""
    linear = problem.linear & ~problem.fixed
    if not linear.any():
        return theta
    if problem.exact:
        return _solve_exactly(problem, theta, y, weights, linear)
    basis = problem.gradient(theta)[:, :, linear]
    rest = problem.values(theta) - np.einsum("sml,sl->sm", basis, theta[:, linear])
    scale = np.sqrt((weights[:, :, None] * basis * basis).sum(axis=1)) + 1e-300
    basis = basis / scale[:, None, :]
    weighted = np.swapaxes(basis * weights[:, :, None], 1, 2)
    gram = weighted @ basis + 1e-14 * np.eye(int(linear.sum()))
    right = weighted @ (y - rest)[:, :, None]
    out = theta.copy()
    good = np.isfinite(gram).all(axis=(1, 2)) & np.isfinite(right).all(axis=(1, 2))
    out[np.ix_(good, linear)] = np.linalg.solve(gram[good], right[good])[:, :, 0] / scale[good]
    return out


def _solve_exactly(problem: Problem, theta: Array, y: Array, weights: Array, linear: Array) -> Array:
    """`solve_linear` by singular value decomposition, which stays accurate for nearly equal columns."""
    out = theta.copy()
    out[:, linear] = 0.0
    # if the other parameters are equal in all problems, so are the columns
    alike = problem.direct and weights.shape[0] == 1 and bool((out == out[:1]).all())
    root = np.sqrt(np.where(weights > 0, weights, 0.0))
    with np.errstate(all="ignore"):
        at = out[:1] if alike else out
        basis = problem.gradient(at)[:, :, linear] * root[:, :, None]
        right = np.where(root > 0, (y - problem.values(at)) * root, 0.0)
    right = np.broadcast_to(right, (theta.shape[0], right.shape[1]))
    basis = np.where(root[:, :, None] > 0, basis, 0.0)
    good = np.isfinite(basis).all(axis=(1, 2)) & np.isfinite(right).all(axis=1)
    if good.any():
        out[np.ix_(good, linear)] = solved(basis if alike else basis[good], right[good])
    out[~good] = theta[~good]
    return out


def minimise(
    problem: Problem,
    theta: Array,
    y: Array,
    weights: Array,
    *,
    max_iterations: int = 200,
    project: bool = False,
    tolerance: float = 1e-10,
    damping: Array | float = 1e-2,
) -> Solution:
    """Minimise the objective from [S, K] starting points.

    Args:
        problem: law, variables, objective.
        theta: [S, K] starting points.
        y: [S, m] or [1, m] measured outputs.
        weights: [S, m] or [1, m] weights, 0 for a measurement left out.
        max_iterations: limit on iterations; `slope` of the result shows whether a problem converged.
        project: solve the linear parameters exactly at every step (variable projection), ignoring their bounds; always
            done if they have no bounds.
        tolerance: a problem stops when its `slope` is at most this.
        damping: initial Marquardt parameter, one or [S].

    Returns:
        The points reached, in the order of the starts.
    """
    project = project or problem.exact
    count, size = theta.shape[0], y.shape[-1]
    step = max(1, CHUNK // max(1, size * theta.shape[1]))
    parts = []
    first = np.broadcast_to(damping, count)
    for begin in range(0, count, step):
        rows = slice(begin, begin + step)
        part_y = y if y.shape[0] == 1 else y[rows]
        part_w = weights if weights.shape[0] == 1 else weights[rows]
        with np.errstate(all="ignore"):
            run = _Run(problem, theta[rows], part_y, part_w, project, first[rows])
            parts.append(run.solve(max_iterations, tolerance))
    return Solution(
        np.concatenate([p.theta for p in parts]),
        np.concatenate([p.cost for p in parts]),
        np.concatenate([p.slope for p in parts]),
        max(p.iterations for p in parts),
    )


def stationarity(problem: Problem, theta: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """[S] objective and slope (see `Solution`) at [S, K] points, without moving them."""
    with np.errstate(all="ignore"):
        run = _Run(problem, theta, y, weights, False, np.zeros(theta.shape[0]))
        run.model(np.arange(theta.shape[0]))
    return run.cost, run.slope


class _Run:
    """State of one batch of problems."""

    def __init__(self, problem: Problem, theta: Array, y: Array, weights: Array, project: bool, damping: Array) -> None:
        self.problem, self.project = problem, project
        self.solved = problem.linear & ~problem.fixed & (project and problem.exact)
        count = theta.shape[0]
        self.y, self.w = y, weights
        self.plain = problem.objective.quadratic and bool((weights == 1).all())
        self.log = problem.log_mask(project)
        self.low, self.high = problem.bounds(self.log)
        if project:
            self.low, self.high = (
                np.where(problem.linear, e, b) for e, b in ((-np.inf, self.low), (np.inf, self.high))
            )
            theta = solve_linear(problem, theta, self.y, self.w)
        self.z = np.clip(to_z(theta, self.log), self.low, self.high)
        self.damping = damping.astype(float)
        self.slope = np.full(count, np.inf)
        size = theta.shape[1]
        self.models = np.empty((count, size, size)), np.empty((count, size)), np.empty((count, size))
        self.moved = np.ones(count, dtype=bool)
        self.cost, f = self._cost(self.z, np.arange(count))
        self.f = f.copy()  # a law may return a read-only view

    def _cost(self, z: Array, at: Array) -> tuple[Array, Array]:
        """[s] objective of the problems `at`, and [s, m] the law's values, at z."""
        f = self.problem.values(to_theta(z, self.log))
        r = self.problem.objective.residual(_of(self.y, at), f)
        if self.plain:
            total = (r * r).sum(axis=-1)
            return np.where(np.isfinite(total), total, np.inf), f
        return self.problem.objective.cost(r, _of(self.w, at)), f

    def solve(self, max_iterations: int, tolerance: float) -> Solution:
        """Iterate until every problem is stationary, stuck or out of iterations."""
        running = np.flatnonzero(np.isfinite(self.cost))
        used = 0
        if self.project and self.problem.direct:
            self.slope[running] = 0.0
            max_iterations = 0
        while used < max_iterations and running.size:
            used += 1
            running = running[self._iterate(running, tolerance)]
        return Solution(to_theta(self.z, self.log), self.cost, self.slope, used)

    def _iterate(self, at: Array, tolerance: float) -> Array:
        """One iteration of the problems `at`; returns which of them continue."""
        hessian, gradient, majorant = self._models(at)
        z, damping = self.z[at], self.damping[at]
        scale = np.sqrt(np.maximum(majorant, 1e-300))
        free = ~(((z <= self.low) & (gradient > 0)) | ((z >= self.high) & (gradient < 0)) | self.problem.fixed)
        free &= majorant > 0
        ridge = 1.0 if self.problem.objective.quadratic else 1e-3
        both = free[:, :, None] & free[:, None, :]
        matrix = np.where(both, hessian / (scale[:, :, None] * scale[:, None, :]), 0.0)
        damped = np.where(free & ~(self.project & self.problem.linear), ridge * damping[:, None], 1e-13)
        matrix[:, np.arange(z.shape[1]), np.arange(z.shape[1])] += np.where(free, damped, 1.0)
        right = np.where(free, -gradient / scale, 0.0)
        move = _solve(matrix, right)
        limit = np.where(self.log, 4.0, np.inf)
        change = np.where(self.solved, 0.0, np.clip(move / scale, -limit, limit))
        trial = np.clip(z + change, self.low, self.high)
        if self.project:
            theta = solve_linear(self.problem, to_theta(trial, self.log), _of(self.y, at), _of(self.w, at))
            trial = np.where(self.problem.linear & ~self.problem.fixed, theta, trial)
        cost, f = self._cost(trial, at)
        better = cost < self.cost[at]
        expected = -(move * right).sum(axis=1) / np.maximum(self.cost[at], 1e-300)
        self.z[at[better]], self.cost[at[better]], self.f[at[better]] = trial[better], cost[better], f[better]
        self.moved[at[better]] = True
        self.damping[at] = np.clip(np.where(better, damping / 6, damping * 5), 1e-13, 1e15)
        stuck = ~better & ((damping > 1e10) | (np.abs(expected) < 1e-30))
        return np.asarray(~(stuck | (self.slope[at] <= tolerance) | (self.cost[at] == 0)))

    def _models(self, at: Array) -> tuple[Array, Array, Array]:
        """`model`, recomputed only for problems that moved, except for Huber's loss, whose model depends on damping."""
        if not self.problem.objective.quadratic:
            return self.model(at)
        new = at[self.moved[at]]
        if new.size:
            for kept, made in zip(self.models, self.model(new), strict=True):
                kept[new] = made
            self.moved[new] = False
        hessian, gradient, majorant = (kept[at] for kept in self.models)
        return hessian, gradient, majorant

    def model(self, at: Array) -> tuple[Array, Array, Array]:
        """Gauss-Newton matrix [s, K, K], gradient [s, K], and diagonal of the majorant's matrix [s, K]."""
        theta = to_theta(self.z[at], self.log)
        objective = self.problem.objective
        f = self.f[at]
        jacobian = np.require(self.problem.gradient(theta), requirements="W")
        for k in np.flatnonzero(self.log):
            jacobian[:, :, k] *= theta[:, k, None]
        r = objective.residual(_of(self.y, at), f)
        if objective.log:
            jacobian = jacobian * np.asarray(objective.jacobian_factor(f))[:, :, None]
        if self.plain:
            return self._squares(at, jacobian, r)
        w = _of(self.w, at)
        left = np.where(w > 0, w, 0.0)
        r = np.where(w > 0, r, 0.0)
        if objective.quadratic:
            root = np.sqrt(left)
            return self._squares(at, jacobian * root[:, :, None], r * root)
        influence = left * objective.influence(r)
        gradient = -_rows(influence, jacobian)
        # damp towards reweighted least squares, because Huber's loss has no curvature far from 0
        curvature = objective.curvature(r) + self.damping[at, None] * objective.majorant(r)
        hessian = np.swapaxes(jacobian * (left * curvature)[:, :, None], 1, 2) @ jacobian
        squared = jacobian * jacobian
        size = np.sqrt((influence * influence / np.maximum(left, 1e-300)).sum(axis=1))
        self.slope[at] = self._stationarity(at, gradient, _rows(left, squared), size)
        return hessian, gradient, _rows(left * objective.majorant(r), squared)

    def _squares(self, at: Array, jacobian: Array, r: Array) -> tuple[Array, Array, Array]:
        """`model` for least squares, given the Jacobian and residuals times root weights.

        Columns of linear parameters that are solved for are replaced by orthonormal ones, which gives the same step of
        the other parameters more accurately.
        """
        if self.solved.any():
            jacobian = np.nan_to_num(jacobian)
            own = jacobian[:, :, self.solved]
            jacobian[:, :, self.solved] = np.linalg.qr(own / lengths(own)[:, None, :])[0]
        hessian = np.swapaxes(jacobian, 1, 2) @ jacobian
        gradient = -_rows(r, jacobian)
        diagonal = np.diagonal(hessian, axis1=1, axis2=2).copy()
        self.slope[at] = self._stationarity(at, gradient, diagonal, np.sqrt(self.cost[at]))
        return hessian, gradient, diagonal

    def _stationarity(self, at: Array, gradient: Array, squares: Array, size: Array) -> Array:
        """[s] slopes, given squared lengths [s, K] of the Jacobian's columns, and lengths [s] of the residuals."""
        z = self.z[at]
        blocked = ((z <= self.low) & (gradient > 0)) | ((z >= self.high) & (gradient < 0)) | self.problem.fixed
        cosine = np.abs(gradient) / np.maximum(np.sqrt(squares) * size[:, None], 1e-300)
        return np.asarray(np.where(blocked, 0.0, cosine).max(axis=1))


def _of(values: Array, at: Array) -> Array:
    """The rows `at` of [S, m] values; [1, m] values are shared by all problems."""
    return values if values.shape[0] == 1 else values[at]


def _rows(weights: Array, columns: Array) -> Array:
    """[S, K]: sums over m of weights [S, m] times columns [S, m, K]."""
    return np.asarray((weights[:, None, :] @ columns)[:, 0, :])


def _solve(matrix: Array, right: Array) -> Array:
    """[S, K] solutions; 0 for problems that are not finite, and least squares if any matrix is exactly singular."""
    good = np.isfinite(matrix).all(axis=(1, 2)) & np.isfinite(right).all(axis=1)
    out = np.zeros_like(right)
    try:
        out[good] = np.linalg.solve(matrix[good], right[good][:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        for i in np.flatnonzero(good):
            out[i] = np.linalg.lstsq(matrix[i], right[i], rcond=None)[0]
    return out

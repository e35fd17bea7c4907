"""Finds the global optimum: many starts in one batch, then Newton's method from the best, then checks of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from forgetting.analysis.fit.objective import Objective
from forgetting.analysis.fit.solver import CHUNK, Problem, minimise, solve_linear, stationarity, to_theta, to_z
from forgetting.analysis.laws.base import Array

SAME = 1e-6  # relative difference of objectives below which two optima count as one
APART = 1e-2  # relative difference of a parameter above which two points are different answers
STATIONARY = 1e-6  # cosine between residuals and a Jacobian column above which a point is not stationary
DAMPING = np.array([1e-4, 1e-2, 1.0, 100.0])
SCANNED = 8
"""Number of points from which parameters are tried one by one."""
SWEEPS = 2
"""How often each parameter is tried."""
FEW = 0.05
"""If a smaller share of the starts reaches the best fit, the fit warns; for a law with grids, more are drawn first."""
ROUNDS = 4  # most rounds of starts, if few of them reach the best fit


@dataclass(frozen=True)
class Found:
    """The best point, and the evidence that it is the best.

    Attributes:
        theta: [K] parameters in fitted coordinates.
        cost: the objective there.
        slope: largest cosine between residuals and a free column of the Jacobian (0 at a stationary point).
        starts: number of starting points.
        share: share of them that reached the best objective to within a relative 1e-6.
        converged: whether theta is stationary, a minimum in every direction, and no worse than any other point tried.
        minimum: False if the exact Hessian has a negative eigenvalue.
        twin: [K] another point, far from theta, with the same objective; None if no start ended at one.
    """

    theta: Array
    cost: float
    slope: float
    starts: int
    share: float
    converged: bool
    minimum: bool
    twin: Array | None = None


def search(
    problem: Problem, y: Array, weights: Array, *, starts: int, rng: np.random.Generator, first: Array | None = None
) -> Found:
    """Find the minimum of the objective.

    Args:
        problem: law in fitted coordinates, variables, objective.
        y: [m] measured outputs.
        weights: [m] weights.
        starts: number of points to draw from the starting region; more are drawn if few reach the best fit.
        rng: random generator of the starts.
        first: [K] an additional starting point; with `starts=0` the only one.
    """
    y, weights = y[None], weights[None]
    ends: list[Array] = []
    costs: list[Array] = []
    count, total = starts, 0
    grids = problem.law.grids(problem.x, y[0]) if starts else {}
    for _ in range(ROUNDS):
        theta, damping = _draw(problem, count, rng, y, first if not ends else None, ends, costs)
        begin = [_lowest(ends, costs), theta[-SCANNED // 2 :]] if ends else [theta[-SCANNED:]]
        theta = np.concatenate([theta, scanned(problem, np.concatenate(begin), y, weights, grids, rng)])
        theta, reached = _descend(problem, theta, y, weights, np.pad(damping, (0, len(theta) - len(damping)), "edge"))
        ends.append(theta)
        costs.append(reached)
        total += theta.shape[0]
        every = np.concatenate(costs)
        agreeing = int(np.sum(_same(every, float(every.min()), y, weights)))
        if starts == 0 or agreeing >= (max(3, FEW * every.size) if grids else 3):
            break
        count = starts
    every = np.concatenate(costs)
    best = np.concatenate(ends)[int(np.argmin(every))]
    if grids:
        best = _plainest(
            np.concatenate(ends)[every <= float(every.min()) * (1 + 1e-9) + _floor(y, weights)], best, grids
        )
    same = _same(every, float(every.min()), y, weights)
    apart = np.abs(np.concatenate(ends) - best) > APART * (np.abs(best) + APART)
    twins = np.concatenate(ends)[same & apart.any(axis=1)]
    theta, minimum = (best, True) if problem.direct else polish(problem, best, y, weights)
    if problem.exact:
        theta = solve_linear(problem, theta[None], y, weights)[0]
    cost, slope = (float(v[0]) for v in stationarity(problem, theta[None], y, weights))
    if problem.direct:  # there is a single minimum, and any remaining slope is rounding error
        return Found(theta, cost, 0.0, total, 1.0, bool(np.isfinite(cost)), True)
    perfect = cost <= _floor(y, weights)
    lowest = cost <= float(every.min()) * (1 + 1e-9) + _floor(y, weights)
    converged = perfect or (slope <= STATIONARY and minimum and lowest)
    return Found(
        theta, cost, slope, total, float(np.mean(same)), bool(converged), minimum, twins[0] if len(twins) else None
    )


def _plainest(equals: Array, best: Array, grids: Mapping[int, Array]) -> Array:
    """Of equally good points, the one with the most parameters inside their grids, and then the fewest negative ones.

    A width that enters as a square may have either sign, and a wave through evenly spaced points has faster aliases.
    """

    def strange(theta: Array) -> tuple[int, int]:
        outside = sum(not grid.min() <= theta[k] <= grid.max() for k, grid in grids.items())
        return outside, int(np.sum(theta < 0))

    return np.asarray(min((best, *equals), key=strange))


def _lowest(ends: Sequence[Array], costs: Sequence[Array]) -> Array:
    """[s, K] end points with the lowest distinct objectives."""
    every, theta = np.concatenate(costs), np.concatenate(ends)
    _, first = np.unique(np.round(np.log(np.maximum(every, 1e-300)), 3), return_index=True)
    return theta[first[np.argsort(every[first])][: SCANNED // 2]]


def _floor(y: Array, weights: Array) -> float:
    """An objective below this is rounding error."""
    return float(1e-22 * np.sum(weights * y * y))


def _same(costs: Array, best: float, y: Array, weights: Array) -> Array:
    return np.asarray(costs <= best * (1 + SAME) + _floor(y, weights))


def _draw(
    problem: Problem,
    count: int,
    rng: np.random.Generator,
    y: Array,
    first: Array | None,
    ends: list[Array],
    costs: list[Array],
) -> tuple[Array, Array]:
    """New starting points and dampings: from the starting region, and in later rounds half of them around the best.

    The given point `first` is tried with several dampings, because in a long curved valley the first step decides.
    """
    theta = problem.law.starts_for(count, rng, problem.x, y[0])
    if ends:
        best = np.concatenate(ends)[int(np.argmin(np.concatenate(costs)))]
        half = count // 2
        log = problem.log_mask(False)
        z = to_z(best[None], log)
        theta[:half] = to_theta(z + rng.normal(0, 0.3, (half, z.shape[1])) * np.where(log, 1.0, np.abs(z) + 1e-3), log)
    damping = np.full(theta.shape[0], DAMPING[1])
    if first is None:
        return theta, damping
    copies = np.repeat(first[None], len(DAMPING), axis=0)
    return np.concatenate([copies, theta]), np.concatenate([DAMPING, damping])


def scanned(
    problem: Problem,
    theta: Array,
    y: Array,
    weights: Array,
    grids: Mapping[int, Array],
    rng: np.random.Generator,
) -> Array:
    """[S, K] points after moving each parameter in turn to the best value of its grid, with linear ones solved for.

    This finds a peak, period or step that no drawn point is close to.
    """
    theta = theta.copy()
    if not grids:
        return theta[:0]
    for _ in range(SWEEPS):
        for k in rng.permutation(list(grids)):
            tried = np.repeat(theta[:, None], len(grids[int(k)]) + 1, axis=1)
            tried[:, 1:, k] = grids[int(k)]
            parts = []
            step = max(1, CHUNK // (y.shape[1] * theta.shape[1] * tried.shape[1]))
            for begin in range(0, len(theta), step):
                flat = tried[begin : begin + step].reshape(-1, theta.shape[1])
                with np.errstate(all="ignore"):
                    flat = solve_linear(problem, flat, y, weights)
                    cost = problem.objective.cost(problem.objective.residual(y, problem.values(flat)), weights)
                best = np.argmin(cost.reshape(-1, tried.shape[1]), axis=1)
                parts.append(flat.reshape(-1, *tried.shape[1:])[np.arange(len(best)), best])
            theta = np.concatenate(parts)
    return theta


def _descend(problem: Problem, theta: Array, y: Array, weights: Array, damping: Array) -> tuple[Array, Array]:
    """Minimise from the starts to local optima within the bounds."""
    with np.errstate(all="ignore"):
        if problem.linear.any():
            if problem.objective.quadratic:
                limit = 60 if theta.shape[0] > 2 * len(DAMPING) else 600
                # near the data, residuals of logarithms are relative residuals, which are linear in these parameters
                plain = replace(problem, objective=Objective())
                relative = weights / y**2 if problem.objective.log else weights
                theta = minimise(plain, theta, y, relative, max_iterations=limit, project=True, damping=damping).theta
            else:  # for other objectives, least squares only gives starting values of the linear parameters
                theta = solve_linear(problem, theta, y, weights)
        theta = feasible(problem, theta)
    solution = minimise(problem, theta, y, weights, max_iterations=300, damping=damping)
    return solution.theta, solution.cost


def feasible(problem: Problem, theta: Array) -> Array:
    """Move points into the bounds; a `log` parameter that became negative restarts at the low end of its region."""
    out = theta.copy()
    for k, p in enumerate(problem.law.parameters):
        if p.log:
            out[:, k] = np.where(np.isfinite(out[:, k]) & (out[:, k] > 0), out[:, k], p.start[0])
        out[:, k] = np.clip(out[:, k], p.low, p.high)
    return out


def polish(problem: Problem, theta: Array, y: Array, weights: Array) -> tuple[Array, bool]:
    """Newton's method with the exact Hessian; returns the end point and whether it is a minimum in all free directions.

    The Hessian is the complex-step derivative of the analytic gradient, which is exact up to rounding.
    """
    log = problem.log_mask(False)
    low, high = problem.bounds(log)
    z = to_z(theta, log)
    minimum, best, flattest = True, z, np.inf
    for _ in range(20):
        with np.errstate(all="ignore"):
            gradient, hessian = newton_terms(problem, z, log, y[0], weights[0])
        free = ~((z <= low) & (gradient > 0)) & ~((z >= high) & (gradient < 0)) & ~problem.fixed
        scale = np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-300))
        if not (np.isfinite(hessian).all() and free.any()):
            break
        # near the minimum the objective changes only by rounding, so use the gradient to decide
        steep = float(np.max(np.abs(gradient / scale)[free]))
        if steep >= flattest:
            break
        best, flattest = z, steep
        eigen, vectors = np.linalg.eigh((hessian / scale[:, None] / scale)[np.ix_(free, free)])
        minimum = bool(eigen[0] > -1e-7 * max(1.0, float(eigen[-1])))
        if eigen[0] <= 1e-14 * eigen[-1]:
            break
        move = np.zeros_like(z)
        move[free] = -(vectors @ ((vectors.T @ (gradient / scale)[free]) / eigen)) / scale[free]
        trial = np.clip(z + move, low, high)
        before, after = (_cost(problem, v, log, y, weights) for v in (z, trial))
        if not after <= before * (1 + 1e-9):
            break
        z = trial
    return to_theta(best, log), minimum


def _cost(problem: Problem, z: Array, log: Array, y: Array, weights: Array) -> float:
    with np.errstate(all="ignore"):
        f = problem.values(to_theta(z, log)[None])
        return float(problem.objective.cost(problem.objective.residual(y, f), weights)[0])


def newton_terms(problem: Problem, z: Array, log: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Gradient [K] and exact Hessian [K, K] of the objective with respect to z (of half of it, for least squares)."""
    objective = problem.objective
    f, jacobian = _scaled_jacobian(problem, z[None], log)
    r = objective.residual(y, f[0].real)
    influence = weights * objective.influence(r)
    curved = weights * objective.curvature(r)
    first = jacobian[0].real
    hessian = first.T @ (first * curved[:, None])
    h = 1e-40
    stepped = z[None] + 1j * h * np.eye(z.size)
    _, moved = _scaled_jacobian(problem, stepped, log)
    hessian -= np.einsum("m,smk->sk", influence, moved.imag / h)
    return -(influence @ first), 0.5 * (hessian + hessian.T)


def _scaled_jacobian(problem: Problem, z: Array, log: Array) -> tuple[Array, Array]:
    """Values [S, m], and their derivatives [S, m, K] with respect to z on the residual's scale; may be complex."""
    theta = to_theta(z, log)
    f = problem.values(theta)
    jacobian = problem.gradient(theta) * np.where(log, theta, 1.0)[:, None, :]
    factor = problem.objective.jacobian_factor(f)
    return f, jacobian * (factor[:, :, None] if isinstance(factor, np.ndarray) else factor)

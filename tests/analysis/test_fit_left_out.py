"""Residuals of runs left out of their own fit, against a slow twin with full matrices; and their memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from forgetting.analysis.fit import bootstrap, summed
from forgetting.analysis.fit.bootstrap import blocks_of_runs, free_basis, left_out_residuals
from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.objective import Objective
from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.laws import FormulaLaw

LAW = FormulaLaw("loss = a + b*u + c*v", ["u", "v"])
SIZES = (1, 2, 90, 7, 30, 3)


def example(sizes: tuple[int, ...] = SIZES, *, alone: bool = False) -> tuple[Problem, Data, np.ndarray]:
    """Runs of several sizes, with shuffled rows and weights; `alone`: only run 2 determines c."""
    rng = np.random.default_rng(3)
    run = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    v = rng.normal(size=run.size) * ((run == 2) if alone else 1.0)
    x = {"u": rng.normal(size=run.size), "v": v}
    y = 1 + x["u"] - v + rng.normal(size=run.size) + rng.normal(size=len(sizes))[run]
    data = Data(x, y[None], None, run, tuple(map(str, range(len(sizes)))), False, {})
    return Problem(LAW, x, Objective()), data, rng.uniform(0.5, 2.0, run.size)


def best(problem: Problem, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    root = np.sqrt(weights)
    design = problem.gradient(np.ones((1, 3)))[0]
    return np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]


def twin(problem: Problem, theta: np.ndarray, y: np.ndarray, weights: np.ndarray, run: np.ndarray) -> np.ndarray:
    """(I - H)^-1 r of each run from the eigenvalues of I - H, which has a row and a column for each row of the run."""
    basis, root = free_basis(problem, theta, weights), np.sqrt(weights)
    r = (y - problem.values(theta[None])[0]) * root
    out = r.copy()
    for g in range(int(run.max()) + 1):
        at = run == g
        eigen, vectors = np.linalg.eigh(np.eye(int(at.sum())) - basis[at] @ basis[at].T)
        inverse = np.where(eigen > 1e-3, 1 / np.maximum(eigen, 1e-3), 1.0)
        out[at] = vectors @ (inverse * (vectors.T @ r[at]))
    return np.asarray(out / root)


@pytest.mark.parametrize("block", [1, 40, 2**16])
@pytest.mark.parametrize("alone", [False, True])
def test_left_out_residuals_equal_those_from_full_matrices(
    alone: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "BLOCK", block)
    problem, data, weights = example(alone=alone)
    theta = best(problem, data.y[0], weights)
    slow = twin(problem, theta, data.y[0], weights, data.run)
    fast = left_out_residuals(problem, theta, data.y[0], weights, data.run)
    np.testing.assert_allclose(fast, slow, rtol=1e-10, atol=1e-10)
    cells = summed.collapse(problem, data, weights[None])
    residual = data.y - problem.values(theta[None])
    np.testing.assert_allclose(summed.left_out_residuals(cells, theta, residual)[0], slow, rtol=1e-10, atol=1e-10)


def test_left_out_residuals_of_a_linear_law_are_the_errors_of_a_fit_without_the_run() -> None:
    problem, data, weights = example()
    y = data.y[0]
    fast = left_out_residuals(problem, best(problem, y, weights), y, weights, data.run)
    design = problem.gradient(np.ones((1, 3)))[0]
    for g in range(len(SIZES)):
        own, kept = data.run == g, np.where(data.run == g, 0.0, weights)
        np.testing.assert_allclose(fast[own], y[own] - design[own] @ best(problem, y, kept), rtol=1e-9, atol=1e-9)


def test_blocks_contain_whole_runs_and_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "BLOCK", 40)
    run = example()[1].run
    blocks = list(blocks_of_runs(run))
    assert sorted(np.concatenate(blocks)) == list(range(run.size))
    assert [sorted(set(run[at])) for at in blocks] == [[0, 1], [2], [3, 4, 5]]


@pytest.mark.parametrize("shape", ["long", "many"])
def test_twice_the_rows_take_twice_the_memory(shape: str) -> None:
    peaks = []
    for n in (3_000, 6_000):
        problem, data, weights = example((n, n, n) if shape == "long" else (3,) * n)
        theta = best(problem, data.y[0], weights)
        tracemalloc.start()
        left_out_residuals(problem, theta, data.y[0], weights, data.run)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.3 * peaks[0]
    assert peaks[0] < 3 * 3_000 * 8 * 60  # a few columns a row


@pytest.mark.parametrize(
    ("runs", "kept", "message"),
    [
        (8, 8, "48 of the 1,600 rows of all 8 runs, evenly spaced:"),
        (80, 50, "300 of the 10,000 rows of 50 of 80 runs, both evenly spaced:"),
    ],
)
def test_long_runs_are_thinned_to_evenly_spaced_rows_with_a_notice(runs: int, kept: int, message: str) -> None:
    _, data, weights = example((200,) * runs)
    few, its_weights = summed.sample_runs(data, weights[None], 6 * kept + 2)
    assert (few.n, len(few.runs), few.sampled_from) == (6 * kept, kept, (200 * runs, runs))
    assert np.bincount(few.run).tolist() == [6] * kept
    assert f"fitted to {message}" in few.warnings[0]
    at = [int(np.flatnonzero(data.y[0] == value)[0]) for value in few.y[0]]
    np.testing.assert_array_equal(its_weights[0], weights[at])
    for name, g in zip(few.runs, range(kept), strict=True):
        rows = np.flatnonzero(data.run == int(name))
        left_out = [i for i, run in zip(at, few.run, strict=True) if run == g]
        assert (left_out[0], left_out[-1]) == (rows[0], rows[-1])

"""The test of misfit by runs, and bands that span rival laws outside the measured range."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from test_fit_table1 import NAMES, PER_RANK, table

from forgetting.analysis.fit import Fit, fit_law
from forgetting.analysis.fit.bootstrap import freedom, left_out_residuals
from forgetting.analysis.fit.data import Data, read_data
from forgetting.analysis.fit.misfit import misfits
from forgetting.analysis.fit.objective import Objective
from forgetting.analysis.fit.rivals import find_rivals
from forgetting.analysis.fit.runwise import evenly_spaced
from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.laws import LAWS
from forgetting.analysis.laws.quadratic import Axis, QuadraticSurface
from forgetting.analysis.plan import plan_budget
from forgetting.analysis.plan.predict import Predictions, predict_rows

LINE = LAWS["linear"]


def lines(rng: np.random.Generator, *, bend: float = 0.0, runs: int = 9, steps: int = 12) -> dict[str, np.ndarray]:
    """L_f = 3 - 1.5 L_ft, with an offset and a slope per run, noise per step, and `bend` at both ends of the range."""
    loss = np.tile(np.linspace(1.0, 1.5, steps), runs)
    run = np.repeat(np.arange(runs), steps)
    place = (loss - 1.25) / 0.25
    offset, slope = rng.normal(0, 0.02, (2, runs))
    noise = offset[run] + slope[run] * place / 2 + rng.normal(0, 0.005, run.size)
    return {"run_id": run, "finetune_loss": loss, "forgetting_loss": 3 - 1.5 * loss + noise + bend * place**2}


def problem_of(data: Data) -> Problem:
    return Problem(LINE, data.x, Objective())


@pytest.mark.full
def test_a_right_law_is_rejected_at_the_nominal_rate() -> None:
    """Runs of equal design, so the test is Student's t on the bends of the runs, with runs - 1 degrees of freedom."""
    from scipy import stats

    alarms = 0
    for i in range(400):
        data = read_data(LINE, lines(np.random.default_rng([1, i])))
        theta = np.array([-np.polyfit(data.x["finetune_loss"], data.y[0], 1)[0], 0.0])
        theta[1] = np.mean(data.y[0] + theta[0] * data.x["finetune_loss"])
        (found,) = misfits(problem_of(data), theta, data, np.ones_like(data.y))
        place = (data.x["finetune_loss"] - 1.25) / 0.25
        bends = [np.polyfit(place[data.run == g], data.y[0, data.run == g], 2)[0] for g in range(9)]
        assert found.size == pytest.approx(np.mean(bends), abs=1e-9)
        assert found.p == pytest.approx(stats.ttest_1samp(bends, 0.0).pvalue, rel=1e-6)
        alarms += found.p_holm < 0.05
    assert 8 <= alarms <= 32  # 20 are expected; 3 of 10,000 such counts lie outside


def test_a_planted_bend_is_found_and_reported() -> None:
    fit = fit_law("linear", lines(np.random.default_rng(0), bend=-0.02), bootstrap=40)
    (found,) = fit.diagnostics["misfit"]
    assert found["size"] == pytest.approx(-0.02, abs=3 * found["se"])
    (warning,) = [w for w in fit.warnings if "bend" in w]
    assert warning.startswith("residuals bend with finetune_loss: forgetting_loss is 0.0")
    assert "nats/token below the law at both ends" in warning
    assert "may not hold outside the measured range" in warning
    assert not any("bend" in w for w in fit_law("linear", lines(np.random.default_rng(0)), bootstrap=40).warnings)


def test_a_data_set_of_its_own_level_is_found() -> None:
    made = lines(np.random.default_rng(1), runs=12)
    name = np.where(made["run_id"] % 2, "news", "code")
    moved = made | {"dataset": name, "forgetting_loss": made["forgetting_loss"] + 0.1 * (name == "news")}
    assert any("is 0.09" in w or "is 0.1" in w for w in fit_law("linear", moved, bootstrap=40).warnings)
    assert not any("data set" in w for w in fit_law("linear", made | {"dataset": name}, bootstrap=40).warnings)


def test_a_data_set_of_one_run_is_not_tested() -> None:
    """That run alone determines its level, so no other run tells its error: most of these tests were false alarms."""
    columns = lines(np.random.default_rng(1))
    columns["forgetting_loss"] += 0.1 * (columns["run_id"] == 8)
    for alone in ([8], [7, 8]):
        columns["dataset"] = np.where(np.isin(columns["run_id"], alone), columns["run_id"].astype(str), "a")
        found = fit_law("linear", columns, bootstrap=0).diagnostics["misfit"]
        assert [m["of"] for m in found if m["kind"] == "level"] == ["a"] * (len(alone) - 1)


def test_many_rows_are_tested_by_every_kth_run() -> None:
    made = lines(np.random.default_rng(2), bend=0.01, runs=400, steps=60)
    fit = fit_law("linear", made, bootstrap=40)
    assert any("bend" in w for w in fit.warnings)
    assert fit.rivals[0].law.name == "quadratic in finetune_loss"


def test_few_long_runs_are_all_tested_on_a_share_of_their_rows() -> None:
    made = lines(np.random.default_rng(2), bend=0.02, runs=12, steps=5000)
    data = read_data(LINE, made)
    part, weights = evenly_spaced(data, data.y, 20_000)
    assert (len(part.runs), part.n, weights.shape) == (12, 19_992, part.y.shape)
    assert (np.bincount(part.run) == 1666).all()
    ends = [np.flatnonzero(data.run == run)[[0, -1]] for run in range(12)]
    assert set(np.concatenate(ends)) <= set(part.row)  # from first to last
    data = read_data(LINE, lines(np.random.default_rng(2), runs=400, steps=60))
    many, _ = evenly_spaced(data, data.y, 20_000)
    assert (len(many.runs), many.n) == (200, 12_000)  # whole runs, if enough are left


def test_a_rivals_draws_and_errors_are_those_of_refits() -> None:
    """Twins by lstsq: refits without each run, and the wild bootstrap's variance in closed form."""
    data = read_data(LINE, lines(np.random.default_rng(3), bend=0.05, runs=8))
    weights = np.random.default_rng(4).uniform(0.5, 2, data.y.shape)
    noise = {"forgetting_loss": 0.02}
    (rival,) = find_rivals(LINE, data, weights, missed={"forgetting_loss": 9.0}, noise=noise, count=4000, seed=0)
    basis, root = rival.law.basis(data.x), np.sqrt(weights[0])[:, None]
    theta = np.linalg.lstsq(basis * root, data.y[0] * root[:, 0], rcond=None)[0]
    np.testing.assert_allclose(rival.theta, theta, rtol=1e-9)
    problem = Problem(rival.law, data.x, Objective())
    left = left_out_residuals(problem, theta, data.y[0], weights[0], data.run)
    pull = np.linalg.pinv(basis * root) * root[:, 0] * left
    exact = np.sqrt(sum(pull[:, data.run == g].sum(axis=1) ** 2 for g in range(8)))
    np.testing.assert_allclose(rival.draws.std(axis=0), exact, rtol=0.06)
    rest = [data.run != g for g in range(8)]
    refits = [np.linalg.lstsq((basis * root)[r], (data.y[0] * root[:, 0])[r], rcond=None)[0] for r in rest]
    errors = np.concatenate([data.y[0, ~r] - basis[~r] @ t for r, t in zip(rest, refits, strict=True)])
    np.testing.assert_allclose(np.sort(errors), np.sort(left), rtol=1e-6, atol=1e-12)
    # its weight: 1/2 against a law that misses by as much, 1 / (1 + exp(-4)) against one that misses by a scatter more
    rmse = float(np.sqrt(np.mean(errors**2)))
    for excess, share in ((0.0, 0.5), (1.0, 1 / (1 + np.exp(-4.0)))):
        missed = {"forgetting_loss": float(np.hypot(rmse, 0.02 * np.sqrt(excess)))}
        (found,) = find_rivals(LINE, data, weights, missed=missed, noise=noise, count=4000, seed=0)
        assert len(found.draws) == pytest.approx(4000 * share, abs=2)


@pytest.fixture(scope="module")
def fitted() -> Fit:
    data = table(NAMES[0], noise=0.004, runs_each=2).assign(forgetting_floor=0.5)
    return fit_law("shifted_power", data, label="d", bootstrap=100, starts=16)


@pytest.mark.full
def test_rivals_widen_the_band_outside_and_leave_it_untouched_inside(fitted: Fit) -> None:
    alone = replace(fitted, rivals=())
    shares = fitted.band_laws()
    assert next(iter(shares)) == "shifted_power"
    assert sum(shares.values()) == pytest.approx(1.0)
    assert len(shares) > 1
    step = np.array([60.0, 150.0, 250.0, 261.0, 2000.0])
    for output in ("finetune_loss", "forgetting_loss"):
        both = [f.predict(output, trainable_params=64.0 * PER_RANK, step=step) for f in (fitted, alone)]
        assert np.array_equal(both[0].value, both[1].value)
        for end in ("low", "high", "run_low", "run_high"):
            band, bare = (getattr(p, end) for p in both)
            assert np.array_equal(band[:3], bare[:3])
        width = [p.high - p.low for p in both]
        assert (width[0][:3] == width[1][:3]).all()
        assert (width[0][3:] != width[1][3:]).all()
        assert width[0][-1] > 1.2 * width[1][-1]
    text = str(fitted)
    assert "beyond the measured range, bands include laws" in text
    assert "bands include laws" not in str(alone)


def test_predict_plan_json_and_a_stored_fit_have_the_same_band(fitted: Fit) -> None:
    again = Fit.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again.band_laws() == fitted.band_laws()
    rows = predict_rows(fitted, "d", {"step": [100, 2000]}, ranks=[64])
    stored = predict_rows(again, "d", {"step": [100, 2000]}, ranks=[64])
    for one, other in zip(rows, stored, strict=True):
        assert one == other
    assert rows[0]["band_laws"] == {"shifted_power": 1.0}
    assert rows[1]["band_laws"] == fitted.band_laws()
    predictions = Predictions(tuple(rows))
    assert str(predictions).count("bands include laws that fit about as well inside it: shifted_power (") == 1
    assert "quadratic in step" in predictions.to_frame()["band_laws"][1]
    plans = [plan_budget(f, 0.5) for f in (fitted, again)]
    assert plans[0].to_dict() == plans[1].to_dict()
    assert any("bands include" in s for s in plans[0].sentences)


def test_a_plan_uses_the_law_inside_the_measured_range_and_spans_its_rivals_outside(fitted: Fit) -> None:
    """The twin finds each rival's steps by bisection and its loss there."""
    from scipy.optimize import brentq

    alone = replace(fitted, rivals=())
    near, far = (fitted.predict("forgetting_loss", trainable_params=64.0 * PER_RANK, step=n).value for n in (200, 320))
    for level, outside in ((near, False), (far, True)):
        choice, bare = (plan_budget(f, float(level) - 0.5, ranks=[64]).frontier[0] for f in (fitted, alone))
        assert choice.extrapolated == outside
        assert (choice == bare) != outside
    draws = []
    for rival in fitted.rivals:
        for theta in rival.draws:

            def loss(n: float, o: int, rival=rival, theta=theta) -> float:
                x = {"trainable_params": np.array([64.0 * PER_RANK]), "step": np.array([n])}
                return float(rival.law.values(theta[None], x)[0, o, 0])

            over = [n for n in np.geomspace(50, 700, 300) if loss(n, 1) > float(far)]
            n = brentq(lambda n: loss(n, 1) - float(far), 50, over[0], xtol=1e-11, rtol=1e-14) if over else np.inf
            draws.append((n, loss(n, 0) if over else np.nan))
    from forgetting.analysis.plan.surface import surface_of

    surface = surface_of(fitted)
    steps = surface.drawn_steps(64.0 * PER_RANK, "forgetting_loss", float(far), outside=True)
    losses = surface.drawn_losses(64.0 * PER_RANK, steps, "finetune_loss", outside=True)
    assert len(steps) == len(losses) == len(fitted.draws)
    got, known = np.stack([steps, losses])[:, -len(draws) :].T, np.isfinite(draws).all(axis=1)
    assert known.sum() >= 0.6 * len(draws)
    np.testing.assert_allclose(got[known], np.array(draws)[known], rtol=1e-9)
    assert (got[~known, 0] > 700).all()


def test_a_quadratic_surface_is_its_polynomial() -> None:
    """Values and gradient by hand; solved for one variable against its roots; and from JSON."""
    axes = {"p": Axis.of(np.array([1.0, np.e**4])), "n": Axis.of(np.array([2.0, 3.0]))}
    assert (axes["p"].log, axes["n"].log) == (True, False)
    law = QuadraticSurface(("y", "z"), axes, [(), ("p",), ("n",), ("p", "n"), ("n", "n")])
    theta = np.arange(1.0, 21).reshape(2, 10)
    x = {"p": np.exp([0.0, 3.0, 4.0]), "n": np.array([2.5, 2.0, 3.5])}
    p, n = np.array([-1.0, 0.5, 1.0]), np.array([0.0, -1.0, 2.0])
    terms = np.stack([np.ones(3), p, n, p * n, n**2])
    for s in range(2):
        for o in range(2):
            np.testing.assert_allclose(law.values(theta, x)[s, o], theta[s, 5 * o : 5 * o + 5] @ terms)
    np.testing.assert_allclose(np.einsum("sonk,sk->son", law.gradient(theta, x), theta), law.values(theta, x))
    again = QuadraticSurface.from_spec(json.loads(json.dumps(law.spec)))
    np.testing.assert_array_equal(again.values(theta, x), law.values(theta, x))
    for up in (True, False):
        found = law.solve(theta, "y", 30.0, "n", {"p": float(np.exp(3.0))}, up=up)
        for s in range(2):
            c = theta[s, :5]
            roots = np.roots([c[4], c[2] + 0.5 * c[3], c[0] + 0.5 * c[1] - 30.0])
            matching = [r for r in roots if (2 * c[4] * r + c[2] + 0.5 * c[3] > 0) == up]
            assert found[s] == pytest.approx(2.5 + 0.5 * matching[0], rel=1e-12)
    flat = theta * np.array([1, 1, 1, 1, 0] * 2)
    assert law.solve(flat, "y", 9.0, "n", {"p": float(np.exp(3.0))}, up=True)[0] == pytest.approx(2.5 + 0.5 * 7.0 / 5.0)
    assert np.isinf(law.solve(theta, "y", -9.0, "n", {"p": 1.0}, up=True)).all()


def test_degrees_of_freedom_are_runs_minus_parameters_that_differ_between_runs() -> None:
    """Equal runs use one degree of freedom, for the offset; if every row is a run, one per parameter."""
    data = read_data(LINE, lines(np.random.default_rng(5), runs=9))
    theta = np.array([1.5, 3.0])
    weights = np.ones_like(data.y)
    assert freedom(problem_of(data), theta, weights, data.run) == pytest.approx(8.0)
    assert freedom(problem_of(data), theta, weights, np.arange(data.n)) == pytest.approx(data.n - 2)
    fit = fit_law("linear", lines(np.random.default_rng(5), runs=200, steps=12), bootstrap=40)  # summed by cells
    assert fit.diagnostics["freedom"] == pytest.approx(199.0)

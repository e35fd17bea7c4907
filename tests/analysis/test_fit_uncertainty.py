"""Intervals: against closed forms, against slow twins, and by simulated coverage."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import optimize, special
from test_fit_table1 import NAMES, table

from forgetting.analysis.fit import fit_law, summed
from forgetting.analysis.fit.bootstrap import left_out_residuals, resample, student, widening
from forgetting.analysis.fit.data import read_data
from forgetting.analysis.fit.line import fit_both
from forgetting.analysis.fit.objective import Objective
from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.laws import LAWS, FormulaLaw
from forgetting.errors import UsageError

LINE = LAWS["linear"]
DECAY = FormulaLaw("y = E + A*exp(-k*x)", ["x"], bounds={"k": (0.01, 10.0)})


def lines(rng: np.random.Generator, runs: int = 8, steps: int = 6, between: float = 0.02) -> dict[str, list]:
    """L_f = 3 - 1.5 L_ft with one offset per run and a little noise per step."""
    table: dict[str, list] = {"run_id": [], "finetune_loss": [], "forgetting_loss": []}
    for run in range(runs):
        offset = rng.normal() * between
        for x in np.linspace(1.5, 1.0, steps) - 0.03 * run:
            table["run_id"].append(f"r{run}")
            table["finetune_loss"].append(x)
            table["forgetting_loss"].append(3 - 1.5 * x + offset + rng.normal() * between / 5)
    return table


def decay(rng: np.random.Generator, n: int = 40) -> dict[str, np.ndarray]:
    x = np.linspace(0, 4, n)
    return {"x": x, "y": 1 + 2 * np.exp(-0.8 * x) + rng.normal(0, 0.05, n)}


def test_left_out_residuals_are_those_of_fits_without_the_run():
    """For a linear law (I - H)^-1 is exact: the twin refits without each run, by lstsq."""
    table = lines(np.random.default_rng(0))
    data = read_data(LINE, table)
    fit = fit_law(LINE, table, bootstrap=0)
    problem = Problem(LINE, data.x, Objective())
    got = left_out_residuals(problem, fit.theta, data.y[0], np.ones(data.n), data.run)
    design = np.stack([-data.x["finetune_loss"], np.ones(data.n)], axis=1)
    for g in range(8):
        rest = data.run != g
        beta = np.linalg.lstsq(design[rest], data.y[0, rest], rcond=None)[0]
        np.testing.assert_allclose(got[~rest], data.y[0, ~rest] - design[~rest] @ beta, rtol=1e-8, atol=1e-12)


def test_wild_bootstrap_has_the_variance_of_the_cluster_jackknife():
    """CR3 in closed form: sum over runs of (influence . left-out residuals)^2."""
    table = lines(np.random.default_rng(1), runs=12)
    data = read_data(LINE, table)
    fit = fit_law(LINE, table, bootstrap=4000)
    problem = Problem(LINE, data.x, Objective())
    residual = left_out_residuals(problem, fit.theta, data.y[0], np.ones(data.n), data.run)
    design = np.stack([-data.x["finetune_loss"], np.ones(data.n)], axis=1)
    per_run = np.stack([np.linalg.pinv(design)[:, data.run == g] @ residual[data.run == g] for g in range(12)])
    exact = np.sqrt((per_run**2).sum(axis=0))
    np.testing.assert_allclose(np.std(np.array(fit.draws), axis=0), exact, rtol=0.05)
    slope = fit.parameters["c_fft"]
    half = np.quantile(np.abs(np.array(fit.draws)[:, 0] - slope.value), 0.95)
    left = fit.diagnostics["freedom"]
    assert 10 < left < 11  # 12 runs, an offset between them and a little of the slope
    wide = special.stdtrit(left, 0.975) / special.ndtri(0.975)
    assert fit.widen == pytest.approx(wide, rel=1e-11)  # scipy before 1.17 is off by 4e-12
    assert slope.high - slope.value == pytest.approx(wide * half)
    assert slope.value - slope.low == pytest.approx(wide * half)
    assert slope.identified == "strong"


def test_whole_runs_give_wider_intervals_than_points():
    table = lines(np.random.default_rng(2), runs=12)
    data = read_data(LINE, table)
    problem = Problem(LINE, data.x, Objective())
    theta = fit_law(LINE, table, bootstrap=0).theta
    spread = {}
    for scheme in ("residuals", "cases", "points"):
        rng = np.random.default_rng(0)
        draws = resample(problem, theta, data.y, np.ones_like(data.y), data.run, count=400, rng=rng, scheme=scheme)
        middle = draws.theta @ np.array([-1.1, 1.0])
        spread[scheme] = np.std(middle)
    assert spread["residuals"] > 1.7 * spread["points"]
    assert spread["cases"] > 1.7 * spread["points"]


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_students_quantile_is_the_closed_form(confidence):
    """Freedom 1, 2 and 4 can be solved by hand; with more and more freedom it is the normal's.

    scipy 1.15 is exact to ten digits, newer ones to more.
    """
    assert student(confidence, 1) == pytest.approx(np.tan(np.pi * confidence / 2), rel=1e-10)
    assert student(confidence, 2) == pytest.approx(confidence * np.sqrt(2 / (1 - confidence**2)), rel=1e-10)
    root = np.sqrt(1 - confidence**2)
    q = np.cos(np.arccos(root) / 3) / root
    assert student(confidence, 4) == pytest.approx(2 * np.sqrt(q - 1), rel=1e-10)
    assert student(confidence, 10**7) == pytest.approx(special.ndtri(0.5 + confidence / 2), rel=1e-6)


@pytest.mark.parametrize("confidence", [0.68, 0.95])
def test_widening_is_students_over_the_normals_quantile(confidence):
    upper = 0.5 + confidence / 2
    assert widening(5, confidence) == pytest.approx(special.stdtrit(5, upper) / special.ndtri(upper), rel=1e-6)


def slow_profile(table: dict[str, np.ndarray], cut: float) -> tuple[float, float]:
    """The k at which the sum of squares, minimised over E and A, equals `cut`, by bisection on lstsq."""

    def excess(k: float) -> float:
        basis = np.stack([np.ones_like(table["x"]), np.exp(-k * table["x"])], axis=1)
        return float(np.sum((table["y"] - basis @ np.linalg.lstsq(basis, table["y"], rcond=None)[0]) ** 2)) - cut

    best = optimize.minimize_scalar(excess, bounds=(0.1, 3), method="bounded", options={"xatol": 1e-12}).x
    return optimize.brentq(excess, 0.05, best), optimize.brentq(excess, best, 5)


@pytest.mark.full
def test_profile_interval_is_where_the_objective_rises_enough():
    table = decay(np.random.default_rng(3))
    fit = fit_law(DECAY, table, bootstrap=0, intervals="profile")
    k = fit.parameters["k"]
    # the stretch for unequal variances is the ratio of the two standard errors; recover it from the upper end
    best, n = fit.objective_value, 40
    twin = [slow_profile(table, best * (1 + t**2 / (n - 3))) for t in np.linspace(1.0, 3.5, 251)]
    nearest = min(twin, key=lambda ends: abs(ends[1] - k.high))
    assert nearest[1] == pytest.approx(k.high, rel=5e-3)
    assert nearest[0] == pytest.approx(k.low, rel=5e-3)
    assert k.high - k.value > k.value - k.low  # a decay rate is limited less from above


def test_an_unbounded_interval_is_reported():
    rng = np.random.default_rng(4)
    x = np.linspace(0, 0.15, 30)  # far too short to show the curvature: E is not determined
    table = {"x": x, "y": 1 + 2 * np.exp(-0.8 * x) + rng.normal(0, 0.05, 30)}
    fit = fit_law(DECAY, table, bootstrap=0, intervals="profile")
    assert any("do not limit" in w or "not identified" in w for w in fit.warnings)


def test_errors_in_both_losses_equal_york_regression():
    """York's iteration, written out; and with L_ft exact, weighted least squares."""
    rng = np.random.default_rng(5)
    truth = np.linspace(1, 2, 25)
    x_se, y_se = rng.uniform(0.02, 0.06, 25), rng.uniform(0.01, 0.05, 25)
    x, y = truth + x_se * rng.normal(size=25), 3 - 1.5 * truth + y_se * rng.normal(size=25)
    b = -1.0
    for _ in range(200):
        w = 1 / (y_se**2 + b**2 * x_se**2)
        u, v = x - np.average(x, weights=w), y - np.average(y, weights=w)
        beta = w * (u * y_se**2 + b * v * x_se**2)
        b = np.sum(w * beta * v) / np.sum(w * beta * u)
    (slope, intercept), cost = (v[0] for v in fit_both(x, y, x_se, y_se, np.ones((1, 25))))
    assert slope == pytest.approx(-b, rel=1e-7)
    assert intercept == pytest.approx(np.average(y, weights=w) - b * np.average(x, weights=w), rel=1e-7)
    assert cost == pytest.approx(np.sum(w * (y - intercept - b * x) ** 2), rel=1e-9)
    exact = fit_both(x, y, np.full(25, 1e-9), y_se, np.ones((1, 25)))[0][0]
    assert exact[0] == pytest.approx(-np.polyfit(x, y, 1, w=1 / y_se)[0], rel=1e-6)


@pytest.mark.full
def test_noise_in_the_finetune_loss_flattens_only_least_squares():
    rng = np.random.default_rng(6)
    table: dict[str, list] = {k: [] for k in ("run_id", "finetune_loss", "forgetting_loss")}
    for run in range(20):
        for x in np.linspace(1.0, 1.3, 10):
            table["run_id"].append(run)
            table["finetune_loss"].append(x + rng.normal() * 0.05)
            table["forgetting_loss"].append(3 - 1.5 * x + rng.normal() * 0.02)
    both = table | {"finetune_loss_se": [0.05] * 200, "forgetting_loss_se": [0.02] * 200}
    flat = fit_law("linear", both).parameters["c_fft"]
    fair = fit_law("linear", both, objective="errors-in-both").parameters["c_fft"]
    assert flat.high < 1.5
    assert fair.low < 1.5 < fair.high
    with pytest.raises(UsageError, match="needs positive finetune_loss_se"):
        fit_law("linear", table, objective="errors-in-both")
    with pytest.raises(UsageError, match="is for law 'linear'"):
        fit_law("chinchilla", {"N": [1], "D": [1], "loss": [1]}, objective="errors-in-both")


def test_errors_in_both_losses_of_a_loss_from_another_column() -> None:
    """Its standard errors are those of that column, and not finetune_loss_se."""
    columns = {k: np.array(v) for k, v in lines(np.random.default_rng(7)).items()}
    size = np.linspace(0.01, 0.05, len(columns["run_id"]))
    columns |= {"finetune_loss_se": size, "forgetting_loss_se": np.full(size.size, 0.01)}
    other = columns | {"ft": columns["finetune_loss"], "ft_se": size[::-1]}
    renamed = columns | {"finetune_loss_se": size[::-1]}
    options = {"objective": "errors-in-both", "bootstrap": 0}
    mapped = fit_law("linear", other, columns={"finetune_loss": "ft"}, **options)
    assert mapped.theta == pytest.approx(fit_law("linear", renamed, **options).theta, rel=1e-12)
    with pytest.raises(UsageError, match="that is COLUMN_se"):
        fit_law("linear", columns | {"ft": size}, columns={"finetune_loss": "ft"}, **options)


def test_errors_in_both_losses_of_many_rows_take_little_memory() -> None:
    rng = np.random.default_rng(8)
    x, size = rng.normal(size=3000), np.full(3000, 0.1)
    counts = rng.multinomial(30, np.full(30, 1 / 30), size=100)[:, np.arange(3000) % 30].astype(float)
    tracemalloc.start()
    found = fit_both(x, 2 - x + 0.1 * rng.normal(size=3000), size, size, counts)[0]
    assert tracemalloc.get_traced_memory()[1] < 200e6  # an array of resamples, angles and rows has 1.7 GB
    tracemalloc.stop()
    assert np.abs(found - [1, 2]).max() < 0.02


def test_errors_in_both_losses_of_a_constant_loss() -> None:
    steps = np.linspace(1, 2, 12)
    table = {"finetune_loss_se": [0.01] * 12, "forgetting_loss_se": [0.01] * 12, "run_id": list("aabbccddeeff")}
    flat = table | {"finetune_loss": steps, "forgetting_loss": np.full(12, 3.0)}
    fit = fit_law("linear", flat, objective="errors-in-both")
    assert [e.value for e in fit.parameters.values()] == pytest.approx([0, 3], abs=1e-12)
    assert np.isnan(fit.r2["forgetting_loss"])
    assert any("forgetting_loss is 3 in every row" in warning for warning in fit.warnings)
    few = fit_law("linear", flat, objective="errors-in-both", bootstrap=3)
    assert any("3 resamples are too few" in warning for warning in few.warnings)
    upright = table | {"finetune_loss": np.full(12, 3.0), "forgetting_loss": steps}
    with pytest.raises(UsageError, match=r"'x': finetune_loss is 3 in every row, so no line can be fitted"):
        fit_law("linear", upright, label="x", objective="errors-in-both")


def test_weights_from_standard_errors_are_those_of_weighted_least_squares():
    table = lines(np.random.default_rng(7))
    se = np.random.default_rng(8).uniform(0.005, 0.1, 48)
    fit = fit_law("linear", table | {"forgetting_loss_se": se}, weights="se", bootstrap=0)
    slope, intercept = np.polyfit(table["finetune_loss"], table["forgetting_loss"], 1, w=1 / se)
    assert fit.parameters["c_fft"].value == pytest.approx(-slope, rel=1e-9)
    assert fit.parameters["s_fft"].value == pytest.approx(intercept, rel=1e-9)
    with pytest.raises(UsageError, match=r"needs a positive number in every \.\.\._se"):
        fit_law("linear", table, weights="se")


def coverage(simulations: int) -> dict[str, float]:
    """Coverage of 95 % bands at L_ft = 1.1, by scheme."""
    hits = {"fit": 0, "points": 0}
    for i in range(simulations):
        table = lines(np.random.default_rng([9, i]), runs=8)
        fit = fit_law("linear", table, seed=i)
        band = fit.predict("forgetting_loss", finetune_loss=1.1)
        hits["fit"] += bool(band.low <= 3 - 1.5 * 1.1 <= band.high)
        data = read_data(LINE, table)
        problem = Problem(LINE, data.x, Objective())
        rng = np.random.default_rng(i)
        draws = resample(
            problem, fit.theta, data.y, np.ones_like(data.y), data.run, count=200, rng=rng, scheme="points"
        )
        low, high = np.quantile(draws.theta @ np.array([-1.1, 1.0]), [0.025, 0.975])
        hits["points"] += bool(low <= 3 - 1.5 * 1.1 <= high)
    return {k: v / simulations for k, v in hits.items()}


@pytest.mark.parametrize("large", [10, 2000])
@pytest.mark.parametrize("intervals", ["bootstrap", "profile"])
@pytest.mark.parametrize("weights", ["none", "se"])
def test_a_parameter_of_one_run_has_no_interval(monkeypatch, large, intervals, weights):
    """Its own residuals vanish there, so resampling them gave intervals that held the truth 40 % of the time."""
    monkeypatch.setattr(summed, "LARGE", large)
    rng = np.random.default_rng(3)
    run, step = np.repeat(np.arange(8), 5), np.tile(np.arange(1.0, 6.0), 8)
    y = 2 + step**-0.5 + rng.normal(0, 0.1, 8)[run] + rng.normal(0, 0.01, 40)
    se = rng.uniform(0.01, 0.02, 40)
    for formula in ("y = a + b*z + c*log(step)", "y = a + b*z + c/step**d"):
        law = FormulaLaw(formula, ["z", "step"])
        for few, treated in ((True, run == 3), (False, (run == 3) | (run == 5))):
            columns = {"run_id": [f"r{r}" for r in run], "step": step, "z": treated * 1.0, "y": y, "y_se": se}
            fit = fit_law(law, columns, intervals=intervals, weights=weights, bootstrap=20, starts=8)
            assert np.isnan(fit.parameters["b"].low) == few == (not fit.draws)
            assert sum("run 'r3' alone determines" in w for w in fit.warnings) == few


@pytest.mark.full
def test_bands_of_the_line_cover_and_naive_ones_do_not():
    got = coverage(200)
    assert 0.90 <= got["fit"] <= 0.99
    assert got["points"] < 0.75


@pytest.mark.full
def test_the_slope_of_eq_4_has_one_interval_wherever_it_is_shown():
    data = table(NAMES[0], noise=0.004, runs_each=2)
    line, surface = (
        fit_law(law, data, bootstrap=40, seed=3).parameters["c_fft"] for law in ("linear", "shifted_power")
    )
    assert line.low < line.high
    assert [surface.value, surface.low, surface.high] == pytest.approx([line.value, line.low, line.high], rel=1e-9)

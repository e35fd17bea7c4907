"""The fitting engine: global optima, robust objectives, warnings about bad fits, model choice, and display of fits."""

from __future__ import annotations

import html.parser
import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special
from test_fit_table1 import NAMES, table

from forgetting.analysis.fit import Fit, extrapolation_tests, fit_from_published, fit_law, fit_study, r2_by, rank_laws
from forgetting.analysis.fit.data import read_data
from forgetting.analysis.fit.objective import Objective
from forgetting.analysis.fit.search import search
from forgetting.analysis.fit.show import comparison_text
from forgetting.analysis.fit.solver import Problem, minimise
from forgetting.analysis.laws import LAWS, PUBLISHED, FormulaLaw, FunctionLaw, Parameter
from forgetting.analysis.laws.shifted_power import Centred, centre_of
from forgetting.errors import ForgettingError, UsageError

CHINCHILLA = PUBLISHED["besiroglu2024/chinchilla"]


def points(n: int = 245, seed: int = 0, scale: float = 0.0043) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = {k: np.exp(rng.uniform(*np.log(CHINCHILLA.measured_range[k]), n)) for k in ("N", "D")}
    theta = np.array([[CHINCHILLA.parameters[k] for k in CHINCHILLA.law.names]])
    return x | {"loss": CHINCHILLA.law.values(theta, x)[0, 0] * np.exp(scale * rng.standard_t(3, n))}


def objective(z: np.ndarray, t: dict[str, np.ndarray], delta: float = 1e-3) -> float:
    """Summed Huber of log loss."""
    r = np.log(t["loss"]) - np.log(np.exp(z[0]) + np.exp(z[1]) / t["N"] ** z[3] + np.exp(z[2]) / t["D"] ** z[4])
    return float(np.sum(special.huber(delta, r)))


def slow_objective(z: np.ndarray, t: dict[str, np.ndarray], delta: float = 1e-3) -> float:
    """The same, one point at a time."""
    total = 0.0
    for n, d, loss in zip(t["N"], t["D"], t["loss"], strict=True):
        r = np.log(loss) - np.log(np.exp(z[0]) + np.exp(z[1]) / n ** z[3] + np.exp(z[2]) / d ** z[4])
        total += 0.5 * r * r if abs(r) <= delta else delta * (abs(r) - 0.5 * delta)
    return float(total)


@pytest.mark.full
def test_every_seed_finds_the_same_optimum_of_the_chinchilla_objective():
    t = points()
    data = read_data(CHINCHILLA.law, t)
    problem = Problem(CHINCHILLA.law, data.x, Objective("huber-log"))
    y, one = data.y.reshape(-1), np.ones(data.n)
    found = [search(problem, y, one, starts=64, rng=np.random.default_rng(seed)) for seed in range(20)]
    costs = np.array([f.cost for f in found])
    assert np.ptp(costs) <= 1e-7 * costs.min()
    assert all(f.converged for f in found)
    assert all(f.share > 0.5 for f in found)
    theta = found[0].theta
    z = np.array([*np.log(theta[:3]), *theta[3:]])
    assert slow_objective(z, t) == pytest.approx(costs[0], rel=1e-9)
    # started at our optimum and near it, a local optimiser with tight tolerances finds nothing lower
    rng = np.random.default_rng(0)
    for k in range(4):
        begin = z + (0 if k == 0 else 0.1) * rng.normal(size=5)
        end = optimize.minimize(objective, begin, (t,), "L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-12})
        assert end.fun >= costs.min() * (1 - 1e-9)


@pytest.mark.slow
def test_the_optimum_is_never_above_the_best_of_4500_starts():
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
    from fit import chinchilla_points, grid_optimum

    t = chinchilla_points()
    data = read_data(CHINCHILLA.law, t)
    problem = Problem(CHINCHILLA.law, data.x, Objective("huber-log"))
    found = search(problem, data.y.reshape(-1), np.ones(data.n), starts=64, rng=np.random.default_rng(0))
    _, grid, _ = grid_optimum(t)
    assert found.cost <= grid.min() * (1 + 1e-12)


@pytest.mark.parametrize("name", ["least-squares", "huber", "huber-log"])
def test_bootstrap_refits_equal_separate_fits(name):
    """Thousands of warm starts in one batch; the slow twin fits some resamples separately, from many starts."""
    t = points(80)
    data = read_data(CHINCHILLA.law, t)
    problem = Problem(CHINCHILLA.law, data.x, Objective(name))
    y, one = data.y.reshape(-1), np.ones(data.n)
    best = search(problem, y, one, starts=32, rng=np.random.default_rng(0)).theta
    rows = np.random.default_rng(1).multinomial(80, np.full(80, 1 / 80), size=200).astype(float)
    batch = minimise(problem, np.repeat(best[None], 200, 0), y[None], rows, max_iterations=60, tolerance=1e-6)
    for i in range(0, 200, 40):
        alone = search(problem, y, rows[i], starts=32, rng=np.random.default_rng(i))
        assert batch.cost[i] == pytest.approx(alone.cost, rel=1e-6)


def test_huber_is_robust_to_outliers_that_ruin_least_squares():
    t = points()
    t["loss"][:5] *= 1.5
    robust = fit_law("chinchilla", t, objective="huber-log", bootstrap=0)
    naive = fit_law("chinchilla", t, bootstrap=0)
    errors = [abs(f.parameters["beta"].value - 0.3658) for f in (robust, naive)]
    assert errors[0] < 0.02 < errors[1]
    assert robust.diagnostics["delta"] == 1e-3
    moved = robust.diagnostics["delta_sensitivity"]
    assert set(moved) == {"0.0001", "0.01"}
    exact = {0.0001: 0, 0.01: 0}
    for delta in exact:
        again = fit_law("chinchilla", t, objective="huber-log", delta=delta, bootstrap=0)
        assert moved[f"{delta:g}"]["alpha"] == pytest.approx(again.parameters["alpha"].value, rel=1e-3)


def test_a_flat_direction_and_a_bound_are_named():
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 2, 40)
    both = FormulaLaw("y = a * b * x + c", ["x"])
    fit = fit_law(both, {"x": x, "y": 2 * x + 1 + rng.normal(0, 0.1, 40)}, bootstrap=0)
    assert any("do not determine" in w and "a" in w and "b" in w for w in fit.warnings)
    assert fit.diagnostics["standard_errors"]["a"] is None
    bounded = FormulaLaw("y = A * exp(k * x)", ["x"], bounds={"k": (-1.0, 0.5)})
    fit = fit_law(bounded, {"x": x, "y": np.exp(2 * x)}, bootstrap=0)
    assert fit.parameters["k"].value == 0.5
    assert any("'k' stopped at its bound 0.5" in w for w in fit.warnings)


@pytest.mark.slow
def test_a_wrong_optimum_never_comes_without_a_warning():
    """A sine has a local optimum near every frequency; some seeds miss the global one, and then few starts agree."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 10, 60))
    t = {"x": x, "y": 2 * np.sin(3.3 * x) + rng.normal(0, 0.3, 60)}
    parameters = (Parameter("A", -np.inf, np.inf, (0.01, 3.0), linear=True), Parameter("w", 0.1, 700.0, (0.5, 220.0)))
    law = FunctionLaw(lambda p, v: p["A"] * np.sin(p["w"] * v["x"]), parameters, ["x"], "y")
    right, warned = [], []
    for seed in range(6):
        fit = fit_law(law, t, bootstrap=0, seed=seed)
        right.append(abs(fit.parameters["w"].value - 3.3) < 0.05)
        warned.append(any("starts reached the best fit; a better one may exist" in w for w in fit.warnings))
        assert fit.diagnostics["starts"] > 64  # more starts than usual
    assert any(right)
    assert not all(right)
    assert all(r or w for r, w in zip(right, warned, strict=True))


def test_a_second_optimum_that_fits_equally_well_is_named():
    """On evenly spaced points a frequency and its alias fit equally well."""
    x = np.linspace(0, 10, 60)
    alias = 2 * np.pi / (x[1] - x[0]) + 3.3
    law = FormulaLaw("y = A * sin(w * x)", ["x"], start={"w": (3.0, 41.0)}, bounds={"w": (0.1, 80.0)})
    fit = fit_law(law, {"x": x, "y": 2 * np.sin(3.3 * x)}, bootstrap=0)
    (warning,) = (w for w in fit.warnings if "another point fits equally well" in w)
    assert f"{alias:.5g}" in warning or "3.3 instead" in warning


def test_a_saddle_is_not_called_converged():
    """Started exactly on a saddle point, a fit has zero gradient; only the Hessian reveals it."""
    law = FormulaLaw("y = a * sin(b * x)", ["x"], start={"a": 0.0, "b": 0.0})
    x = np.linspace(0, 1, 20)
    fit = fit_law(law, {"x": x, "y": x + 0.5}, start=[0.0, 0.0], starts=0, bootstrap=0)
    good = fit_law(law, {"x": x, "y": x + 0.5}, start=[1.0, 1.0], starts=0, bootstrap=0)
    if fit.objective_value > good.objective_value * (1 + 1e-6):
        assert not fit.diagnostics["converged"]
        assert any("did not converge" in w for w in fit.warnings)


def test_a_law_that_cannot_be_evaluated_fails_with_a_sentence():
    law = FormulaLaw("y = A * sqrt(0 - x)", ["x"])
    with pytest.raises(ForgettingError, match="could not be evaluated"):
        fit_law(law, {"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0]}, bootstrap=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"objective": "hubr"}, "did you mean 'huber'"),
        ({"delta": 0.0, "objective": "huber"}, "delta is 0.0"),
        ({"confidence": 95}, "between 0 and 1"),
        ({"bootstrap": -1}, "must not be negative"),
        ({"starts": 0}, "needs a start"),
        ({"start": [1.0]}, "start has 1 values"),
        ({"intervals": "wald"}, "intervals is 'wald'"),
        ({"intervals": "profile", "objective": "huber"}, "needs objective 'least-squares'"),
        ({"weights": "rank"}, "choices: none, se"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        fit_law("chinchilla", points(20), **options)


def test_too_little_data_is_refused():
    with pytest.raises(UsageError, match="has 4 measured values; law 'chinchilla' has 5 free parameters"):
        fit_law("chinchilla", {k: v[:4] for k, v in points(20).items()})
    with pytest.raises(UsageError, match="takes logarithms"):
        fit_law("chinchilla", points(20) | {"loss": np.linspace(-1, 1, 20)}, objective="huber-log")
    with pytest.raises(UsageError, match="accepts no start"):
        fit_law("shifted_power", table(NAMES[0]), start=[1.0] * 13)


def test_aicc_prefers_the_law_that_made_the_data_and_is_its_formula():
    rng = np.random.default_rng(1)
    n = np.geomspace(1, 1000, 40)
    t = {"n": n, "loss": 1 + 2 * n**-0.5 + rng.normal(0, 0.01, 40)}
    right = fit_law(FormulaLaw("loss = E + A/n**alpha", ["n"]), t, bootstrap=0)
    wrong = fit_law(FormulaLaw("loss = E + A*log(n)", ["n"]), t, bootstrap=0)
    more = fit_law(FormulaLaw("loss = E + A/n**alpha + B*n", ["n"]), t, bootstrap=0)
    ranked = rank_laws([wrong, more, right])
    assert ranked[0]["aicc"] == right.diagnostics["aicc"]
    assert ranked[0]["delta_aicc"] == 0
    assert ranked[-1]["aicc"] == wrong.diagnostics["aicc"]
    k = 4
    exact = 40 * np.log(right.objective_value / 40) + 2 * k + 2 * k * (k + 1) / (40 - k - 1)
    assert right.diagnostics["aicc"] == pytest.approx(exact)
    # laws of other outputs are not compared
    line = fit_law("linear", table(NAMES[0], noise=0.004), bootstrap=0)
    assert [r["delta_aicc"] for r in rank_laws([right, line])] == [0, 0]


def test_laws_fitted_to_other_rows_are_not_compared():
    """AICc falls with the number of rows, so the law of fewer rows would look far worse."""
    rng = np.random.default_rng(1)
    n, z = np.geomspace(1, 1000, 40), rng.normal(size=40)
    t = {"n": n, "z": np.where(np.arange(40) % 2, z, np.nan), "loss": 1 - 0.1 * np.log(n) + 0.1 * z}
    t["loss"] = t["loss"] + rng.normal(0, 0.01, 40)
    laws = (FormulaLaw("loss = E + A*log(n)", ["n"]), FormulaLaw("loss = E + A*log(n) + B*z", ["n", "z"]))
    ranked = rank_laws([fit_law(law, t, bootstrap=0) for law in laws])
    assert [(row["n_points"], row["delta_aicc"]) for row in ranked] == [(40, 0), (20, 0)]
    header, first, second = comparison_text("d", ranked).splitlines()[1:4]
    assert (header.split()[-1], first.split()[-1], second.split()[-1]) == ("rows", "40", "20")
    assert "rows" not in comparison_text("d", ranked[:1]).splitlines()[1]


def test_r2_of_other_methods_is_that_of_the_law_as_it_was_fitted():
    lora = table(NAMES[0], noise=0.004)
    other = lora.assign(method="ia3", forgetting_loss=lora["forgetting_loss"] + 0.1, run_id=lora["run_id"] + "-ia3")
    failed = lora.iloc[:2].assign(method="full", status="failed", run_id="f", finetune_loss=np.nan)
    fit = fit_law("linear", lora, bootstrap=0)
    got = r2_by(fit, pd.concat([lora, other, failed]))
    assert got["lora"] == pytest.approx(fit.r2)
    y = other["forgetting_loss"]
    p = {k: e.value for k, e in fit.parameters.items()}
    residual = y - (p["s_fft"] - p["c_fft"] * other["finetune_loss"])
    assert got["ia3"]["forgetting_loss"] == pytest.approx(1 - (residual**2).sum() / ((y - y.mean()) ** 2).sum())
    assert set(got) == {"lora", "ia3"}
    assert {type(name) for name in got} == {str}
    # the law was not fitted to a group alone, so two rows suffice; one row has no variance to explain
    assert r2_by(fit, lora.iloc[[0, -1]].assign(method="few"))["few"]["forgetting_loss"] > 0.9
    assert np.isnan(r2_by(fit, lora.iloc[:1].assign(method="one"))["one"]["forgetting_loss"])
    with pytest.raises(UsageError, match="did you mean 'method'"):
        r2_by(fit, lora, "metod")


def test_leave_one_run_out_is_that_of_refitted_lines():
    data = table(NAMES[0], noise=0.01)
    fit = fit_law("linear", data, bootstrap=0)
    errors = []
    for run in data["run_id"].unique():
        rest, left = data[data["run_id"] != run], data[data["run_id"] == run]
        line = np.polyfit(rest["finetune_loss"], rest["forgetting_loss"], 1)
        errors += (left["forgetting_loss"] - np.polyval(line, left["finetune_loss"])).tolist()
    got = fit.diagnostics["leave_one_run_out"]
    assert got["folds"] == 6
    assert got["rmse"]["forgetting_loss"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-5)


def test_extrapolation_errors_are_those_of_the_rows_that_were_held_out():
    data = table(NAMES[0], noise=0.004)
    tests = {t.axis: t for t in extrapolation_tests("linear", data, bootstrap=20)}
    assert set(tests) == {"trainable_params", "step"}
    t = tests["step"]
    near, far = data[data["step"] <= t.fitted_to], data[data["step"] > t.fitted_to]
    assert len(far) == t.n_points
    assert t.tested_to == 260
    line = np.polyfit(near["finetune_loss"], near["forgetting_loss"], 1)
    error = far["forgetting_loss"] - np.polyval(line, far["finetune_loss"])
    assert t.rmse["forgetting_loss"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-6)
    assert t.bias["forgetting_loss"] == pytest.approx(error.mean(), abs=1e-9)
    assert t.band["forgetting_loss"] > 0
    robust = extrapolation_tests("linear", data, bootstrap=20, objective="huber", delta=1e-3, confidence=0.5)
    fit = fit_law("linear", near, bootstrap=20, objective="huber", delta=1e-3, confidence=0.5)
    said = fit.predict("forgetting_loss", finetune_loss=far["finetune_loss"].to_numpy())
    (one,) = (test for test in robust if test.axis == "step")
    assert one.bias["forgetting_loss"] == pytest.approx(float(np.mean(far["forgetting_loss"] - said.value)), abs=1e-12)
    assert one.bias != t.bias, "the options of the fit are those of the test"
    assert one.band["forgetting_loss"] == pytest.approx(float(np.mean(said.high - said.low)) / 2, rel=1e-9)
    with pytest.raises(UsageError, match="no axis"):
        extrapolation_tests("linear", {"finetune_loss": [1, 2, 3], "forgetting_loss": [1, 2, 3]})


class Cells(html.parser.HTMLParser):
    """The text of table cells; fails on a tag that is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_a_fit_shows_the_same_numbers_everywhere():
    fit = fit_law("linear", table(NAMES[0], noise=0.004), label="a<b & c_d", bootstrap=50)
    slope = fit.parameters["c_fft"]
    numbers = [f"{v:.5g}" for v in (slope.value, slope.low, slope.high)]
    printed = str(fit)
    assert all(n in printed for n in numbers)
    assert "a<b & c_d" in printed
    parser = Cells()
    parser.feed(fit._repr_html_())
    assert parser.open == []
    assert parser.cells[0] == "c_fft"
    assert parser.cells[1] == numbers[0]
    assert "a<b" not in fit._repr_html_()
    latex = fit.to_latex()
    assert rf"c\_fft & {numbers[0]} & {numbers[1]}--{numbers[2]} \\" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(fit)
    text = console.export_text()
    assert all(n in text for n in numbers)


def test_unknown_intervals_are_dashes_and_null():
    fit = fit_from_published(NAMES[0])
    assert "interval" in str(fit)
    assert json.loads(json.dumps(fit.to_dict()))["parameters"]["rho"]["low"] is None
    assert "nan" not in str(fit).lower()


@pytest.mark.full
def test_light_laws_do_not_need_pandas_or_torch():
    import subprocess
    import sys

    heavy = "'torch' in sys.modules or 'pandas' in sys.modules"
    code = f"import sys, forgetting.analysis.fit, forgetting.analysis.laws; sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_law_registry_names_are_those_of_the_laws():
    assert all(law.name == name for name, law in LAWS.items())


def test_a_surface_with_overflowing_parameters_is_not_refused() -> None:
    """In the gauge c = 1, a and b may overflow although the surface that they describe is finite."""
    run, place = (cells.ravel() for cells in np.indices((6, 8)))
    x = {"trainable_params": 1e6 * 2.0**run, "step": 50.0 * (place + 1)}
    law = Centred(("finetune_loss", "forgetting_loss"), (1, -1), centre_of(x))
    theta = np.array([[0.6, 3.0, 0.8, 0.8, 0.0, 14.0, 12.0, 0.01, 0.02, 0.5, 0.32]])
    losses = dict(zip(law.outputs, law.values(theta, x)[0], strict=True))
    table = pd.DataFrame({"dataset": "a", "run_id": run, "status": "done", **x, **losses})
    fit = fit_study(table, bootstrap=0)["a"]["shifted_power"]
    assert math.isinf(fit.parameters["a_f"].value)
    for output, value in losses.items():
        found = fit.predict(output, **x).value
        assert np.abs(found - value).max() < 1e-3
    again = Fit.from_dict(json.loads(json.dumps(fit.to_dict())))
    first, second = (f.predict("forgetting_loss", trainable_params=3e6, step=70).value for f in (fit, again))
    assert first == second
    assert "outside the range of numbers; only its ratio matters" in str(fit)
    assert again.parameters["a_f"].value == math.inf
    assert str(again) == str(fit)

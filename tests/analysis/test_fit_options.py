"""Options of a fit: logarithms, replicates, independent rows; against closed forms, scipy and explicit logarithms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

import forgetting
from forgetting.analysis.fit import fit_law, summed
from forgetting.analysis.laws import FormulaLaw
from forgetting.errors import ForgettingError, UsageError

D = np.geomspace(100, 1e6, 25)
POWER = FormulaLaw("loss = A*D**(-b)", ["D"])
LINE = FormulaLaw("log_loss = a - b*log(D)", ["D"])
LOG = "log-least-squares"


def power_law(noise: float = 0.05) -> np.ndarray:
    return np.exp(2 - 0.3 * np.log(D) + np.random.default_rng(1).normal(0, noise, D.size))


@pytest.mark.parametrize("intervals", ["bootstrap", "profile"])
def test_log_least_squares_equals_least_squares_of_logarithms(intervals):
    y = power_law()
    fit = fit_law(POWER, {"D": D, "loss": y}, objective=LOG, intervals=intervals)
    by_hand = fit_law(LINE, {"D": D, "log_loss": np.log(y)}, intervals=intervals)
    slope, intercept = np.polyfit(np.log(D), np.log(y), 1)
    assert fit.parameters["b"].value == pytest.approx(-slope, rel=1e-9)
    assert fit.parameters["A"].value == pytest.approx(np.exp(intercept), rel=1e-9)
    assert fit.objective_value == pytest.approx(by_hand.objective_value, rel=1e-9)
    fitted, other = fit.parameters["b"], by_hand.parameters["b"]
    assert (fitted.low, fitted.high) == pytest.approx((other.low, other.high), rel=1e-4)
    assert fit.diagnostics["aicc"] == pytest.approx(by_hand.diagnostics["aicc"])
    made, twin = fit.predict("loss", D=[1e3, 1e7]), by_hand.predict("log_loss", D=[1e3, 1e7])
    for band in ("value", "low", "high", "run_low", "run_high"):
        assert np.log(getattr(made, band)) == pytest.approx(getattr(twin, band), abs=2e-3)


def test_log_least_squares_of_a_law_with_linear_parameters_is_that_of_scipy():
    y = 3 - 0.2 * np.log(D) + np.random.default_rng(2).normal(0, 0.01, D.size)
    law = FormulaLaw("loss = a - b*log(D)", ["D"])
    fit = fit_law(law, {"D": D, "loss": y}, objective=LOG, bootstrap=0)

    def residuals(t: np.ndarray) -> np.ndarray:
        return np.log(y) - np.log(np.maximum(t[0] - t[1] * np.log(D), 1e-9))

    twin = optimize.least_squares(residuals, [3.0, 0.2], xtol=1e-14, ftol=1e-14, gtol=1e-14)
    assert fit.theta == pytest.approx(twin.x, rel=1e-7)
    assert fit.objective_value == pytest.approx(2 * twin.cost, rel=1e-10)
    assert fit.diagnostics["converged"]


def test_log_least_squares_weighs_by_relative_standard_errors():
    y = power_law()
    se = y * np.linspace(0.01, 0.1, D.size)
    fit = fit_law(POWER, {"D": D, "loss": y, "loss_se": se}, objective=LOG, weights="se", bootstrap=0)
    slope = np.polyfit(np.log(D), np.log(y), 1, w=y / se)[0]
    assert fit.parameters["b"].value == pytest.approx(-slope, rel=1e-9)


def test_log_least_squares_refuses_what_has_no_logarithm():
    y = power_law()
    y[3] = 0.0
    with pytest.raises(UsageError, match="outputs that are not positive; 'log-least-squares' takes logarithms"):
        fit_law(POWER, {"D": D, "loss": y}, objective=LOG)
    negative = FormulaLaw("loss = -exp(a)*D", ["D"])
    with pytest.raises(ForgettingError, match="needs a law that is positive"):
        fit_law(negative, {"D": D, "loss": power_law()}, objective=LOG)


def test_many_rows_are_fitted_to_logs_too(monkeypatch):
    x = np.tile(D, 120)
    y = np.exp(2 - 0.3 * np.log(x) + np.random.default_rng(3).normal(0, 0.05, x.size))
    runs = np.repeat([f"r{i:03d}" for i in range(120)], D.size)
    fit = fit_law(POWER, {"D": x, "loss": y, "run_id": runs}, objective=LOG, bootstrap=50)
    assert fit.parameters["b"].low < 0.3 < fit.parameters["b"].high
    assert fit.n_points == 3000
    assert not any("evenly spaced" in w for w in fit.warnings)
    monkeypatch.setattr(summed, "AFFORDED", 2000)
    few = fit_law(POWER, {"D": x, "loss": y, "run_id": runs}, objective=LOG, bootstrap=50)
    assert (few.n_points, few.table_size) == (1000, (3000, 120))
    assert few.shown()[0].heading[-2].startswith("1,000 points of 50 runs (a sample of 3,000 points of 120), log-least")
    (warning,) = [w for w in few.warnings if "evenly spaced" in w]
    assert warning == (
        "fitted to 1,000 of the 1,250 rows of 50 of 120 runs, both evenly spaced: with this law and objective all "
        "3,000 rows would take about 2 seconds"
    )


def test_rows_at_the_same_place_are_replicates():
    """As in NIST's Nelson: several measurements at a point, two of them with the same result."""
    x = np.repeat([1.0, 2.0, 4.0, 8.0], 4)
    y = np.array([15.0, 17.0, 15.5, 16.5, 15.5, 15.0, 16.0, 14.5, 15.0, 14.5, 12.5, 11.0, 14.0, 13.0, 14.0, 11.5])
    fit = fit_law(FormulaLaw("y = a + b*x", ["x"]), {"x": x, "y": y})
    slope, intercept = np.polyfit(x, y, 1)
    assert fit.theta == pytest.approx([intercept, slope])
    assert fit.n_points == fit.n_runs == 16
    (warning,) = [w for w in fit.warnings if "same as" in w]
    assert warning.startswith("1 row is the same as an earlier one in every column (rows 13 and 15)")
    with_batch = fit_law(FormulaLaw("y = a + b*x", ["x"]), {"x": x, "y": y, "batch": np.arange(16)}, bootstrap=0)
    assert not any("same as" in w for w in with_batch.warnings)
    with pytest.raises(UsageError, match=r"rows 1 and 2 are the same run and step \(r\)"):
        fit_law(FormulaLaw("y = a + b*x", ["x"]), {"x": x, "y": y, "run_id": ["r"] * 16, "step": [1] * 16})


def test_independent_rows_are_fitted_as_if_no_run_were_named():
    """Their intervals, which assume errors of equal size, differ from those that do not."""
    y = power_law()
    table = {"D": D, "loss": y}
    named = table | {"run_id": np.repeat(list("abcde"), 5)}
    law = FormulaLaw("loss = A*D**(-b)", ["D"])
    iid, unnamed, runs = (forgetting.fit(t, law, iid=i) for t, i in ((named, True), (table, False), (named, False)))
    assert (iid.theta == unnamed.theta).all()
    assert iid.diagnostics["bootstrap"]["scheme"] == "normal"
    assert unnamed.diagnostics["bootstrap"]["scheme"] == "residuals"
    assert iid.parameters["b"].high != runs.parameters["b"].high
    assert "25 points; intervals treat every point as independent" in str(iid)
    assert not any("names no runs" in w for w in iid.warnings)
    assert any("names no runs" in w for w in unnamed.warnings)
    with pytest.raises(UsageError, match=r"give the column of runs \('seed'\) or independent rows"):
        forgetting.fit(named | {"seed": [1] * 25}, law, iid=True, run="seed")
    few = forgetting.fit({k: v[:4] for k, v in named.items()}, law, iid=True)
    assert any("no intervals: 4 rows are too few" in w for w in few.warnings)


@pytest.mark.slow
def test_intervals_of_independent_rows_have_nominal_coverage():
    """Nominal 95 %, 200 tables each of a line and of an exponential, 20 rows with independent noise."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 20)
    for formula, truth in (("y = a + b*x", (1.0, 2.0)), ("y = a*exp(-b*x) + c", (2.0, 3.0, 0.5))):
        law = FormulaLaw(formula, ["x"])
        exact = law.values(np.array([truth]), {"x": x})[0, 0]
        inside = []
        for seed in range(200):
            table = {"x": x, "y": exact + rng.normal(0, 0.03, x.size)}
            fit = fit_law(law, table, iid=True, seed=seed, start=truth, starts=0)
            inside.append([e.low <= t <= e.high for e, t in zip(fit.parameters.values(), truth, strict=True)])
        assert 0.93 <= np.mean(inside) <= 0.97

"""Laws that are linear in their parameters against closed forms: offsets, high powers, few and many rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from forgetting.analysis.fit import fit_law
from forgetting.analysis.laws import FormulaLaw
from forgetting.analysis.laws.base import Array

LOSS = [3.05, 2.86, 2.79, 2.84, 2.81, 2.7, 2.81, 2.74, 2.79, 2.96, 2.95, 3.16, 3.29, 3.34, 3.61]


def closed_form(x: Array, y: Array, degree: int) -> tuple[float, float, float]:
    """The leading coefficient of a polynomial, its standard error, and the sum of squares, from centred columns."""
    u = x - x.mean()
    columns = np.vander(u, degree + 1)
    found = np.linalg.lstsq(columns, y, rcond=None)[0]
    square = float(np.sum((y - columns @ found) ** 2))
    error = np.sqrt(square / (x.size - degree - 1) * np.linalg.inv(columns.T @ columns)[0, 0])
    return float(found[0]), float(error), square


def polynomial(degree: int) -> FormulaLaw:
    return FormulaLaw("loss = a + b*x" + (" + c*x**2" if degree == 2 else ""), ["x"])


def test_a_parabola_over_years_has_the_interval_of_the_closed_form() -> None:
    x = np.arange(2011, 2026.0)
    fit = fit_law(FormulaLaw("loss = a + b*year + c*year**2", ["year"]), {"year": x, "loss": LOSS})
    value, error, square = closed_form(x, np.array(LOSS), 2)
    c = fit.parameters["c"]
    assert fit.objective_value == pytest.approx(square, rel=1e-8)
    assert c.value == pytest.approx(value, rel=1e-6)
    # rows are resampled, so the width equals the closed form except for the pattern of these errors
    assert (c.high - c.low) / 2 == pytest.approx(error * student.ppf(0.975, 12), rel=0.5)


@pytest.mark.parametrize("degree", [1, 2])
def test_an_offset_of_the_variable_changes_no_estimate_interval_or_band(degree: int) -> None:
    u = np.arange(16.0)
    y = 1 + 0.1 * u + 0.02 * u**2 * (degree == 2) + np.random.default_rng(0).normal(0, 0.05, 16)
    base = fit_law(polynomial(degree), {"x": u, "loss": y})
    band = base.predict("loss", x=u)
    _, _, square = closed_form(u, y, degree)
    for offset in (1e3, 2010.0, 5e3, 1e5) if degree == 2 else (2010.0, 1e6, 1e8):
        fit = fit_law(polynomial(degree), {"x": u + offset, "loss": y})
        own, last = base.parameters["bc"[degree - 1]], fit.parameters["bc"[degree - 1]]
        assert fit.objective_value == pytest.approx(square, rel=1e-5)
        assert (last.value, last.low, last.high) == pytest.approx((own.value, own.low, own.high), rel=1e-3)
        moved = fit.predict("loss", x=u + offset)
        assert np.allclose(moved.high - moved.low, band.high - band.low, rtol=1e-3)
        assert all(e.identified == "strong" for e in fit.parameters.values())
        assert fit.diagnostics["converged"]
        assert not any("converge" in w or "do not determine" in w for w in fit.warnings)


def test_a_line_over_unix_seconds_equals_least_squares() -> None:
    i = np.arange(15.0)
    t, loss = 1_700_000_000 + 10 * i, 2 - 0.02 * i + 0.01 * np.cos(2.3 * i)
    fit = fit_law(FormulaLaw("loss = a + b*t", ["t"]), {"t": t, "loss": loss})
    value, _, square = closed_form(t, loss, 1)
    assert fit.parameters["b"].value == pytest.approx(value, rel=1e-6)
    assert fit.objective_value == pytest.approx(square, rel=1e-6)
    assert fit.parameters["b"].identified == "strong"


def test_a_polynomial_of_degree_eight_reaches_its_sum_of_squares() -> None:
    x = np.linspace(1, 3, 12)
    y = np.sin(3 * x) + np.random.default_rng(0).normal(0, 0.02, 12)
    law = FormulaLaw("loss = p0 + " + " + ".join(f"p{k}*x**{k}" for k in range(1, 9)), ["x"])
    fit = fit_law(law, {"x": x, "loss": y})
    square = float(np.sum((np.polynomial.Polynomial.fit(x, y, 8)(x) - y) ** 2))
    assert fit.objective_value == pytest.approx(square, rel=1e-6)


def test_a_law_linear_in_part_does_not_depend_on_the_offset() -> None:
    u = np.arange(25.0)
    y = 2 + 0.01 * u + 0.5 * np.exp(-0.3 * u) + np.random.default_rng(0).normal(0, 0.005, 25)
    near = fit_law(FormulaLaw("loss = a + b*x + c*exp(-k*x)", ["x"]), {"x": u, "loss": y})
    far = fit_law(FormulaLaw("loss = a + b*x + c*exp(-k*(x - 100000))", ["x"]), {"x": u + 100_000, "loss": y})
    for name in ("b", "c", "k"):
        own, other = near.parameters[name], far.parameters[name]
        assert (other.value, other.low, other.high) == pytest.approx((own.value, own.low, own.high), rel=1e-2)


def test_many_rows_far_from_zero_are_summed_without_losing_digits() -> None:
    rng = np.random.default_rng(1)
    u = np.tile(np.arange(50.0), 60)
    run = np.repeat(np.arange(60), 50)
    y = 1 + 0.1 * u + 0.02 * u**2 + rng.normal(0, 0.05, u.size)
    near = fit_law(polynomial(2), {"x": u, "loss": y, "run_id": run})
    far = fit_law(polynomial(2), {"x": u + 5000, "loss": y, "run_id": run})
    own, other = near.parameters["c"], far.parameters["c"]
    assert (other.value, other.low, other.high) == pytest.approx((own.value, own.low, own.high), rel=1e-6)
    errors = (fit.diagnostics["leave_one_run_out"]["rmse"]["loss"] for fit in (near, far))
    assert next(errors) == pytest.approx(next(errors), rel=1e-6)


@pytest.mark.parametrize("intervals", ["bootstrap", "profile"])
def test_as_many_parameters_as_points_give_no_interval_with_the_reason(intervals: str) -> None:
    table = {"x": np.arange(5.0), "y": [1, 2.1, 2.9, 4, 5.1]}
    fit = fit_law(FormulaLaw("y=a+b*x+c*x**2+d*x**3+e*x**4", ["x"]), table, intervals=intervals)
    assert fit.parameters["b"].value == pytest.approx(1.675)
    assert all(np.isnan([e.low, e.high]).all() for e in fit.parameters.values())
    assert any("no degrees of freedom are left" in w for w in fit.warnings)
    made = fit.predict("y", x=2.5)
    assert np.isnan([made.low, made.high, made.run_low, made.run_high]).all()


def test_a_named_law_of_as_many_parameters_as_rows_has_no_interval() -> None:
    n, d = np.array([1e7, 3e7, 1e8, 3e8, 1e9]), np.array([1e9, 3e8, 1e9, 1e10, 3e9])
    loss = 1.7 + 400 / n**0.34 + 410 / d**0.28
    fit = fit_law("chinchilla", pd.DataFrame({"N": n, "D": d, "loss": loss}))
    assert all(np.isnan([e.low, e.high]).all() for e in fit.parameters.values())
    assert any("no degrees of freedom are left" in w for w in fit.warnings)
    made = fit.predict("loss", N=1e8, D=1e9)
    assert np.isnan([made.low, made.high, made.run_low, made.run_high]).all()


@pytest.mark.parametrize(("rows", "size"), [(5, 3), (6, 4), (6, 5), (12, 3)])
def test_independent_rows_have_students_interval_however_few(rows: int, size: int) -> None:
    law = FormulaLaw("loss = a + " + " + ".join(f"{'bcdef'[k - 1]}*x**{k}" for k in range(1, size)), ["x"])
    x = np.arange(float(rows))
    y = 1 + 0.5 * x + np.random.default_rng(3).normal(0, 0.1, rows)
    columns = np.vander(x, size, increasing=True)
    inverse = np.linalg.inv(columns.T @ columns)
    left = y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
    variance = float(left @ left) / (rows - size)
    cut = student.ppf(0.975, rows - size)
    fit = fit_law(law, {"x": x, "loss": y}, iid=True, bootstrap=4000)
    for k, e in enumerate(fit.parameters.values()):
        assert (e.high - e.low) / 2 == pytest.approx(cut * np.sqrt(variance * inverse[k, k]), rel=0.06)
    place = np.vander([rows / 2 - 0.3], size, increasing=True)[0]
    grows = place @ inverse @ place
    made = fit.predict("loss", x=rows / 2 - 0.3)
    assert (made.high - made.low) / 2 == pytest.approx(cut * np.sqrt(variance * grows), rel=0.06)
    assert (made.run_high - made.run_low) / 2 == pytest.approx(cut * np.sqrt(variance * (1 + grows)), rel=0.06)
    exact = fit_law(law, {"x": x, "loss": y}, iid=True, intervals="profile").parameters["b"]
    assert (exact.high - exact.low) / 2 == pytest.approx(cut * np.sqrt(variance * inverse[1, 1]), rel=1e-3)


def test_independent_rows_with_standard_errors_have_the_interval_of_weighted_least_squares() -> None:
    x = np.arange(1, 31.0)
    se = 0.02 * x
    y = 1 + 2 * x + np.random.default_rng(4).normal(0, se)
    fit = fit_law(polynomial(1), {"x": x, "loss": y, "loss_se": se}, iid=True, weights="se", bootstrap=4000)
    columns = np.vander(x, 2, increasing=True) / se[:, None]
    left = y / se - columns @ np.linalg.lstsq(columns, y / se, rcond=None)[0]
    error = np.sqrt(left @ left / 28 * np.diag(np.linalg.inv(columns.T @ columns)))
    for e, one in zip(fit.parameters.values(), error, strict=True):
        assert (e.high - e.low) / 2 == pytest.approx(student.ppf(0.975, 28) * one, rel=0.06)


def test_a_law_worse_than_a_constant_is_reported() -> None:
    x = np.arange(10.0)
    fit = fit_law(FormulaLaw("y = 2*x + a", ["x"]), {"x": x, "y": 5 - 0.5 * x + 0.1 * np.cos(x)}, bootstrap=0)
    assert fit.r2["y"] < -20
    assert any("worse than a constant" in w for w in fit.warnings)
    flat = fit_law(FormulaLaw("y = a + 0*x", ["x"]), {"x": x, "y": np.cos(7 * x) / 3}, bootstrap=0)
    assert flat.r2["y"] == 0
    assert not any("worse than a constant" in w for w in flat.warnings)


@pytest.mark.parametrize("intervals", ["bootstrap", "profile"])
@pytest.mark.parametrize(("bounds", "value", "word"), [((0, 0.2), 0.2, "larger"), ((0.7, 2), 0.7, "smaller")])
def test_a_parameter_at_its_bound_is_shown_with_the_direction_of_the_data(
    intervals: str, bounds: tuple[float, float], value: float, word: str
) -> None:
    x = np.arange(20.0)
    y = 1 + 0.4953 * x + np.random.default_rng(5).normal(0, 0.05, 20)
    law = FormulaLaw("y = a + b*x", ["x"], bounds={"b": bounds})
    fit = fit_law(law, {"x": x, "y": y}, intervals=intervals)
    assert fit.parameters["b"].value == value
    assert fit.parameters["b"].identified == "bound"
    (row,) = (row for row in fit.shown()[0].rows if row[0] == "b")
    assert row[1:3] == (f"{value:g}", "at its bound")
    assert any(f"'b' stopped at its bound {value}: the data favour a {word} value" in w for w in fit.warnings)
    assert not any("not determine" in w or "do not limit 'b'" in w for w in fit.warnings)

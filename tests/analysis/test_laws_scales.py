"""Starting values of formulas at the scale of the data: by dimensional analysis, and fits that need them."""

from __future__ import annotations

import numpy as np
import pytest

from forgetting.analysis.fit import fit_law
from forgetting.analysis.laws import FormulaLaw
from forgetting.analysis.laws.formula import parse
from forgetting.analysis.laws.scales import Region, regions

X = np.linspace(400.0, 500.0, 51)
Y = np.linspace(0.2, 5.0, 51)


def found(formula: str, *variables: str) -> dict[str, Region]:
    parsed = parse(formula)
    names = [n for n in parsed.names if n not in variables]
    return regions(parsed.tree, {v: X * (1000.0 if v == "z" else 1.0) for v in variables}, Y, names)


def ends(region: Region) -> tuple[float, float, bool]:
    return region.low, region.high, region.log


def test_location_parameters_start_in_the_range_of_their_variable():
    got = found("y = A*exp(-((x - m)/w)**2) + B/(1 + exp((x + q)/w))", "x")
    assert ends(got["m"]) == (400, 500, False)
    assert ends(got["q"]) == (-500, -400, False)
    assert ends(got["w"]) == (pytest.approx(2), pytest.approx(1500), True)
    assert ends(got["A"]) == (pytest.approx(0.2), pytest.approx(5), True)
    assert ends(found("y = a*log(b - x)", "x")["b"]) == (400, 500, False)
    assert ends(found("y = a*sqrt(2*x - b)", "x")["b"]) == (800, 1000, False)


@pytest.mark.parametrize(
    ("formula", "name", "power"),
    [
        ("y = A*exp(-x/tau)", "tau", 1),
        ("y = A*exp(-k*x)", "k", -1),
        ("y = A*(1 - exp(-(x/s)**2))", "s", 1),
        ("y = A*exp(-k*x**2)", "k", -2),
        ("y = A*tanh(sqrt(x/s))", "s", 1),
        ("y = A/(1 + b*x + c*x**2)", "b", -1),
        ("y = A/(1 + b*x + c*x**2)", "c", -2),
        ("y = A*log1p(x/s)", "s", 1),
    ],
)
def test_scales_are_powers_of_the_spacing_and_range(formula, name, power):
    got = found(formula, "x")[name]
    assert ends(got) == (
        pytest.approx(min(2.0**power, 1500.0**power)),
        pytest.approx(max(2.0**power, 1500.0**power)),
        True,
    )


def test_frequencies_above_nyquist_are_left_out():
    """At most one wave per two points (Nyquist); faster waves go through the same points as slower ones."""
    for formula, name, low, high in (
        ("y = A*cos(2*pi*x/T) + B", "T", 4, 1500),
        ("y = A*sin(w*x + phase)", "w", 1 / 1500, np.pi / 2),
        ("y = A*sin(2*pi*f*x)", "f", 1 / 1500, 0.25),
    ):
        region = found(formula, "x")[name]
        assert (region.low, region.high) == (pytest.approx(low), pytest.approx(high))
        grid = region.grid(48)
        assert len(grid) > 100
        frequency = np.sort(grid if region.waves > 0 else 1 / grid)
        assert np.diff(frequency) == pytest.approx(np.full(len(grid) - 1, np.diff(frequency).mean()))


def test_units_of_two_variables_and_the_output_combine():
    got = found("y = 1/(a*x + b*z)", "x", "z")
    assert ends(got["a"]) == (pytest.approx(1 / 5 / 1500), pytest.approx(1 / 0.2 / 2), True)
    assert ends(got["b"]) == (pytest.approx(1 / 5 / 1.5e6), pytest.approx(1 / 0.2 / 2000), True)


def test_pure_numbers_have_no_scale():
    assert set(found("loss = E + A/x**alpha + B*x**2/(x**beta)", "x")) == {"E"}
    assert "b2" not in found("y = b1/(1 + exp(b2 - b3*x))", "x")
    assert found("y = a*(1 + x) + b*x", "x")["a"]  # a contradiction of units (1 + x) does no harm


def test_given_starts_are_kept():
    x = np.linspace(0, 10, 30)
    law = FormulaLaw("y = exp(-x/tau) + c", ["x"], start={"tau": (1.0, 2.0)})
    theta = law.starts_for(100, np.random.default_rng(0), {"x": x}, np.exp(-x))
    assert ((theta[:, 0] >= 1) & (theta[:, 0] <= 2)).all()
    assert set(law.grids({"x": x}, np.exp(-x))) == {0}
    fixed = FormulaLaw("y = exp(-x/tau) + c", ["x"], start={"tau": 2.0})
    assert fixed.grids({"x": x}, np.exp(-x)) == {}
    bounded = FormulaLaw("y = exp(-x/tau) + c", ["x"], bounds={"tau": (0.5, 3.0)})
    theta = bounded.starts_for(100, np.random.default_rng(0), {"x": x}, np.exp(-x))
    assert ((theta[:, 0] >= 0.5) & (theta[:, 0] <= 3)).all()


def test_a_time_constant_of_billions_is_found():
    D = np.geomspace(1e8, 1e11, 25)
    fit = fit_law(
        FormulaLaw("loss = E + A*exp(-D/tau)", ["D"]), {"D": D, "loss": 2 + 0.5 * np.exp(-D / 3e9)}, bootstrap=0
    )
    assert fit.parameters["tau"].value == pytest.approx(3e9, rel=1e-6)
    assert fit.diagnostics["converged"]


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
def test_two_peaks_that_overlap_are_found(seed):
    """With the certified parameters of NIST's Gauss2 and noise of its size: a local optimum has one peak too wide."""
    x = np.arange(1.0, 251.0)
    truth = {"b1": 99.0, "b2": 0.011, "b3": 101.9, "b4": 107.0, "b5": 23.6, "b6": 72.0, "b7": 153.3, "b8": 19.5}
    law = FormulaLaw("y = b1*exp(-b2*x) + b3*exp(-(x - b4)**2/b5**2) + b6*exp(-(x - b7)**2/b8**2)", ["x"])
    noise = np.random.default_rng(0).normal(0, 2.2, x.size)
    y = law.values(np.array([[truth[n] for n in law.names]]), {"x": x})[0, 0] + noise
    fit = fit_law(law, {"x": x, "y": y}, seed=seed, bootstrap=0)
    start = [truth[n] for n in law.names]
    near = fit_law(law, {"x": x, "y": y}, start=start, starts=0, bootstrap=0)
    assert fit.objective_value == pytest.approx(near.objective_value, rel=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
def test_two_periods_are_found(seed):
    """As in NIST's ENSO: the longer periods are hidden under the yearly one."""
    x = np.arange(1.0, 169.0)
    law = FormulaLaw(
        "y = a + b*cos(2*pi*x/12) + c*sin(2*pi*x/12) + d*cos(2*pi*x/T) + e*sin(2*pi*x/T) + f*cos(2*pi*x/S) "
        "+ g*sin(2*pi*x/S)",
        ["x"],
    )
    truth = {"a": 10.5, "b": 3.1, "c": 0.5, "d": -1.6, "e": 0.5, "f": 0.2, "g": 1.5, "T": 44.3, "S": 26.9}
    noise = np.random.default_rng(0).normal(0, 1.5, x.size)
    y = law.values(np.array([[truth[n] for n in law.names]]), {"x": x})[0, 0] + noise
    fit = fit_law(law, {"x": x, "y": y}, seed=seed, bootstrap=0)
    assert sorted(fit.parameters[n].value for n in "TS") == pytest.approx([26.9, 44.3], rel=0.05)
    near = fit_law(law, {"x": x, "y": y}, start=[truth[n] for n in law.names], starts=0, bootstrap=0)
    assert fit.objective_value == pytest.approx(near.objective_value, rel=1e-6)

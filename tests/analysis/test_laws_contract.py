"""The contract of laws; a new law is one row in LAWS and, if its range needs it, one in DESIGNS."""

from __future__ import annotations

import numpy as np
import pytest

from forgetting.analysis.fit import fit_law
from forgetting.analysis.laws import LAWS, PUBLISHED, FormulaLaw, FunctionLaw, Law, Parameter
from forgetting.analysis.laws.base import Array
from forgetting.errors import UsageError

FUNCTION = FunctionLaw(
    lambda t, x: t["E"] + np.exp(-t["k"] * x["D"]),
    (
        Parameter("E", -np.inf, np.inf, (0.5, 2.0), linear=True),
        Parameter("k", 0.0, np.inf, (0.1, 2.0), log=True),
    ),
    ("D",),
    "loss",
)
FORMULA = FormulaLaw("loss = E + A/N**alpha + exp(-B * log1p(D)) * sqrt(N) - tanh(alpha / 3)", ["N", "D"])
ALL = [*LAWS.values(), FORMULA, FUNCTION]
IDS = [law.name for law in ALL]

# typical values of the variables
DESIGNS = {
    "trainable_params": np.geomspace(2e7, 6.4e8, 12),
    "step": np.linspace(50, 260, 12)[[3, 1, 4, 0, 5, 9, 2, 6, 11, 10, 8, 7]],
    "finetune_loss": np.linspace(0.6, 2.4, 12),
    "N": np.geomspace(4e7, 1.6e10, 12),
    "D": np.geomspace(2e8, 4e11, 12)[::-1],
    "X": np.geomspace(1e8, 1e10, 12),
    "r": np.linspace(0, 1, 12),
    "p": np.linspace(0, 0.5, 12)[::-1],
    "base_loss": np.linspace(2, 3, 12),
    "kl_weight": np.linspace(0, 1, 12)[[4, 9, 0, 7, 2, 11, 5, 1, 8, 3, 10, 6]],
    "replay_fraction": np.linspace(0, 0.2, 12)[[7, 2, 10, 0, 4, 11, 6, 1, 9, 3, 8, 5]],
}
SMALL = {"N": np.linspace(1, 4, 12), "D": np.linspace(0.1, 3, 12)}


def design(law: Law) -> dict[str, Array]:
    source = SMALL if law in (FORMULA, FUNCTION) else DESIGNS
    return {name: source[name] for name in law.variable_names}


@pytest.mark.parametrize("law", ALL, ids=IDS)
def test_shapes_and_names(law):
    x = design(law)
    theta = law.starts(5, np.random.default_rng(0))
    assert theta.shape == (5, len(law.parameters))
    assert law.values(theta, x).shape == (5, len(law.outputs), 12)
    assert law.gradient(theta, x).shape == (5, len(law.outputs), 12, len(law.parameters))
    assert np.isfinite(law.values(theta, x)).all()
    assert len(set(law.names)) == len(law.names)
    assert law.title
    assert law.formula
    assert law.source


@pytest.mark.parametrize("law", ALL, ids=IDS)
def test_gradient_is_the_complex_step_derivative(law):
    """Exact up to rounding; also close to central differences, in case a law mishandles complex numbers."""
    x = design(law)
    theta = law.starts(20, np.random.default_rng(1))
    gradient = law.gradient(theta, x)
    values = law.values(theta, x)
    for k in range(theta.shape[1]):
        stepped = theta.astype(complex)
        stepped[:, k] += 1e-40j
        exact = law.values(stepped, x).imag / 1e-40
        np.testing.assert_allclose(gradient[..., k], exact, rtol=1e-9, atol=1e-12 * np.abs(exact).max())
        h = 1e-6 * np.abs(theta[:, k])
        up, down = theta.copy(), theta.copy()
        up[:, k] += h
        down[:, k] -= h
        width = (2 * h)[:, None, None]
        slope = (law.values(up, x) - law.values(down, x)) / width
        noise = 1e-15 * np.abs(values) / width
        assert (
            np.abs(gradient[..., k] - slope) <= 1e-6 * np.abs(exact) + 1e-8 * np.abs(exact).max() + 10 * noise
        ).all()


@pytest.mark.parametrize("law", ALL, ids=IDS)
def test_gradient_takes_complex_parameters(law):
    """The fit's exact Hessian is the complex-step derivative of the gradient; it must be symmetric."""
    x = design(law)
    theta = law.starts(1, np.random.default_rng(2))
    size = theta.shape[1]
    stepped = theta + 1e-40j * np.diag(theta[0])
    second = np.swapaxes(law.gradient(stepped, x).imag / 1e-40 / theta[0][:, None, None, None], 0, 3)
    scaled = np.einsum("jonk,j,k->onjk", second, theta[0], theta[0])
    assert scaled.shape[-2:] == (size, size)
    assert np.abs(scaled - np.swapaxes(scaled, -1, -2)).max() <= 1e-7 * np.abs(scaled).max() + 1e-12


@pytest.mark.parametrize("law", ALL, ids=IDS)
def test_starts_lie_inside_the_bounds_and_come_from_the_seed(law):
    theta = law.starts(200, np.random.default_rng(3))
    low = np.array([p.low for p in law.parameters])
    high = np.array([p.high for p in law.parameters])
    assert (theta >= low).all()
    assert (theta <= high).all()
    assert (law.starts(200, np.random.default_rng(3)) == theta).all()
    for k, p in enumerate(law.parameters):
        assert p.start[0] <= p.start[1]
        assert (theta[:, k] > 0).all() or not p.log


@pytest.mark.parametrize("law", ALL, ids=IDS)
def test_the_linear_parameters_are_linear_together(law):
    x = design(law)
    rng = np.random.default_rng(4)
    theta = np.repeat(law.starts(1, rng), 3, axis=0)
    linear = [k for k, p in enumerate(law.parameters) if p.linear]
    step = rng.normal(size=len(linear))
    theta[1, linear] += step
    theta[2, linear] += 2 * step
    zero, one, two = law.values(theta, x)
    np.testing.assert_allclose(two - one, one - zero, rtol=1e-8, atol=1e-10 * np.abs(zero).max())


@pytest.mark.parametrize("law", ALL, ids=IDS)
def test_a_gauged_parameter_can_be_compensated_by_the_others(law):
    """Along the column of a gauged parameter, the others' columns give the same change."""
    gauged = [k for k, p in enumerate(law.parameters) if p.gauge is not None]
    rng = np.random.default_rng(5)
    x = {k: rng.uniform(v.min(), v.max(), 60) for k, v in design(law).items()}
    theta = law.starts(1, rng)
    jacobian = law.gradient(theta, x)[0].reshape(-1, theta.shape[1])
    jacobian = jacobian / np.linalg.norm(jacobian, axis=0)
    for k in gauged:
        others = np.delete(jacobian, k, axis=1)
        left = jacobian[:, k] - others @ np.linalg.lstsq(others, jacobian[:, k], rcond=1e-12)[0]
        assert np.linalg.norm(left) < 1e-7


@pytest.mark.parametrize("law", ALL, ids=IDS)
def test_noise_free_data_are_fitted_to_rounding(law):
    """Data from typical parameters: the fit also reproduces them between the rows."""
    rng = np.random.default_rng(6)
    ranges = design(law)

    def points(n: int) -> dict[str, Array]:
        return {k: np.exp(rng.uniform(*np.log([max(v.min(), 1e-2), v.max()]), n)) for k, v in ranges.items()}

    x, between = points(80), points(40)
    printed = [p.parameters for p in PUBLISHED.values() if p.law.name == law.name]
    theta = np.array([[printed[0][n] for n in law.names]]) if printed else law.starts(1, rng)
    y = law.values(theta, x)[0]
    spread = np.ptp(y, axis=1).max()
    fit = fit_law(law, x | dict(zip(law.outputs, y, strict=True)), bootstrap=0, starts=40)
    got = law.values(fit.theta[None], between)[0]
    assert np.abs(got - law.values(theta, between)[0]).max() < 1e-6 * spread
    assert fit.diagnostics["converged"]


def test_published_laws_fill_every_parameter():
    for name, p in PUBLISHED.items():
        assert p.name == name
        assert set(p.parameters) == set(p.law.names)
        assert set(p.measured_range) == set(p.law.variable_names)
        assert p.source


def test_chinchilla_closed_form():
    """Besiroglu et al. (2024): L(N, D) of Chinchilla itself, 70 B parameters and 1.4 T tokens."""
    p = PUBLISHED["besiroglu2024/chinchilla"]
    theta = np.array([[p.parameters[n] for n in p.law.names]])
    got = p.law.values(theta, {"N": np.array([70e9]), "D": np.array([1.4e12])})[0, 0, 0]
    assert got == pytest.approx(1.8172 + 482.01 / 70e9**0.3478 + 2085.43 / 1.4e12**0.3658, rel=1e-12)


def test_rectified_closed_form():
    """At D = 0 the loss without fine-tuning, E + B/D_l; half of what can be gained is gained where D^beta = D_l."""
    law = LAWS["rectified"]
    theta = np.array([[40.0, 25.0, 0.5, 1.5]])
    got = law.values(theta, {"D": np.array([0.0, 625.0, 1e12])})[0, 0]
    assert got == pytest.approx([1.5 + 40 / 25, 1.5 + 40 / 50, 1.5 + 40 / (25 + 1e6)], rel=1e-12)
    assert np.isfinite(law.gradient(theta, {"D": np.array([0.0])})).all()
    D = np.geomspace(100, 1e6, 12)
    again = FormulaLaw("loss = (L0 - E)/(1 + D**beta/Dl) + E", ["D"])
    values = {"L0": 1.5 + 40 / 25, "E": 1.5, "beta": 0.5, "Dl": 25.0}
    other = again.values(np.array([[values[n] for n in again.names]]), {"D": D})
    assert other == pytest.approx(law.values(theta, {"D": D}), rel=1e-12)


def test_log_linear_is_the_line_of_numpy():
    D = np.geomspace(100, 1e6, 12)
    loss = 3 - 0.15 * np.log(D) + np.random.default_rng(0).normal(0, 0.02, 12)
    fit = fit_law("log_linear", {"D": D, "loss": loss}, bootstrap=0)
    slope, intercept = np.polyfit(np.log(D), loss, 1)
    assert fit.theta == pytest.approx([intercept, -slope], rel=1e-10)


def test_injection_is_the_base_loss_without_data_to_fine_tune_on():
    law = LAWS["injection"]
    theta = np.array([[2.0, 1000.0, 0.5, 0.25]])
    x = {"N": np.array([1e8]), "D": np.array([1e4]), "p": np.array([0.01]), "base_loss": np.array([2.5])}
    assert law.values(theta, x)[0, 0, 0] == pytest.approx(2.5 + 2 * 10 / (11 * 1e8) ** 0.5, rel=1e-12)


def test_unknown_law_is_refused_with_the_near_name():
    with pytest.raises(UsageError, match="did you mean 'chinchilla'"):
        LAWS.find("chinchila")

"""User-defined formulas: grammar, derivatives, and everything that is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import forgetting
from forgetting.analysis.fit import Fit, fit_law
from forgetting.analysis.laws import FormulaLaw, FunctionLaw, Parameter
from forgetting.analysis.laws.formula import FUNCTIONS, evaluate, parse
from forgetting.errors import UsageError

NAMES = {"a": np.float64(1.3), "b": np.float64(0.7), "x": np.array([0.5, 1.5, 2.5])}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 - 3 - 4", -5),
        ("2 / 4 / 2", 0.25),
        ("2 ** 3 ** 2", 512),
        ("-3 ** 2", -9),
        ("(-3) ** 2", 9),
        ("2 ** -1", 0.5),
        ("+1e-3 * 1_000", 1.0),
        ("exp(log(5)) + log1p(expm1(2)) + sqrt(9)", 10),
        ("tanh(0) + sin(0) + cos(0) + arctan(1) * 4 / pi", 2),
    ],
)
def test_numbers_follow_pythons_precedence(text, expected):
    value, by = evaluate(parse(text).tree, {}, frozenset())
    assert value == pytest.approx(expected, rel=1e-14)
    assert by == {}


ATOMS = st.sampled_from(["a", "b", "x", "1.5", "2", "0.25"])
TREES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(st.sampled_from(sorted(FUNCTIONS)), inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(inner, inner).map(lambda t: f"(1 + ({t[0]})**2) ** ({t[1]})"),
        inner.map(lambda t: f"(-{t})"),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TREES)
def test_any_formula_equals_python_and_its_complex_step(text):
    """The slow twin is Python's own evaluation of the same text with numpy's functions."""
    tree = parse(text).tree
    functions = {name: getattr(np, name) for name in FUNCTIONS}
    with np.errstate(all="ignore"):
        value, by = evaluate(tree, NAMES, frozenset("ab"))
        try:
            twin = eval(text, {"__builtins__": {}}, functions | NAMES)  # text made above, not a user's
        except (ZeroDivisionError, OverflowError):
            return
        if not np.isfinite(twin).all():
            return
        np.testing.assert_allclose(np.broadcast_to(value, np.shape(twin)), twin, rtol=1e-10)
        for name in "ab":
            stepped = evaluate(tree, NAMES | {name: NAMES[name] + 1e-40j}, frozenset())[0].imag / 1e-40
            if np.isfinite(stepped).all() and np.abs(stepped).max() < 1e100:
                np.testing.assert_allclose(by.get(name, 0.0) * np.ones(3), stepped * np.ones(3), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("__import__('os').system('x')", "unknown function"),
        ("a.b", "'a.b' is not allowed"),
        ("a[0]", "is not allowed"),
        ("lambda: 1", "is not allowed"),
        ("a if b else x", "is not allowed"),
        ("a < b", "is not allowed"),
        ("a ^ 2", r"write \*\* for a power"),
        ("'text'", "is not allowed"),
        ("True + a", "is not allowed"),
        ("1j * a", "is not allowed"),
        ("[a for a in b]", "is not allowed"),
        ("(a := 1)", "is not a name"),
        ("exq(a)", "did you mean 'exp'"),
        ("exp(a, b)", "takes one argument"),
        ("exp(a=1)", "is not a name"),
        ("a +", "cannot be read"),
        ("", "cannot be read"),
        ("2y = a", "before '=' is not a name"),
        ("1e999 * a", "too large"),
        ("9" * 400 + " * a", "too large"),
        ("a + " * 600 + "a", "at most 2000"),
        ("(" * 300 + "a" + ")" * 300, "cannot be read"),
        ("-" * 100 + "a", "nested more than"),
    ],
)
def test_what_is_not_arithmetic_is_refused(text, says):
    with pytest.raises(UsageError, match=says):
        parse(text)


def test_a_tower_of_powers_overflows_instead_of_hanging():
    with np.errstate(over="ignore"):
        assert evaluate(parse("9**9**9**9**9").tree, {}, frozenset())[0] == np.inf


@pytest.mark.parametrize(
    ("formula", "linear"),
    [
        ("loss = E + A/N**alpha + B/D**beta", {"E", "A", "B"}),
        ("loss = E + A*(N + c*D)", {"E", "A"}),  # A and c multiply, so only one of them is linear
        ("loss = E + (A + B*N)/(1 + k*D)", {"E", "A", "B"}),
        ("loss = exp(a + b*N)", set()),
        ("loss = a*b*N", {"a"}),
    ],
)
def test_linear_parameters_are_found(formula, linear):
    law = FormulaLaw(formula, ["N", "D"])
    assert {p.name for p in law.parameters if p.linear} == linear


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"formula": "E + A/N**alpha"}, "does not name its output"),
        ({"formula": "loss = E + A"}, "has no variable"),
        ({"formula": "loss = 2 * N"}, "has no parameter"),
        ({"formula": "loss = loss * N + E"}, "on both sides"),
        ({"formula": "loss = E * N", "start": {"F": 1.0}}, "no parameter 'F'"),
        ({"formula": "loss = E * N", "bounds": {"E": (2.0, 1.0)}}, "the first must be smaller"),
    ],
)
def test_formula_laws_refuse_what_cannot_be_fitted(arguments, says):
    with pytest.raises(UsageError, match=says):
        FormulaLaw(arguments.pop("formula"), ["N"], **arguments)


def test_a_formula_law_survives_json():
    rng = np.random.default_rng(0)
    n = np.geomspace(1, 100, 30)
    table = {"n": n, "loss": 1.5 + 3 * n**-0.4 + rng.normal(0, 0.01, 30)}
    law = FormulaLaw("loss = E + A/n**alpha", ["n"], bounds={"alpha": (0.0, 2.0)}, start={"alpha": (0.1, 1.0)})
    fit = fit_law(law, table, bootstrap=50)
    again = Fit.from_dict(fit.to_dict())
    assert again.to_dict() == fit.to_dict()
    one, two = (f.predict("loss", n=[3.0, 300.0]) for f in (fit, again))
    np.testing.assert_array_equal(one.low, two.low)
    assert fit.parameters["alpha"].low < 0.4 < fit.parameters["alpha"].high


def test_a_python_function_is_fitted_and_says_what_json_loses():
    law = FunctionLaw(
        lambda t, x: t["E"] + t["A"] * np.exp(-t["k"] * x["n"]),
        [Parameter(n, 0.0, np.inf, (0.1, 3.0), log=True) for n in ("E", "A", "k")],
        ["n"],
        "loss",
    )
    n = np.linspace(0, 5, 20)
    fit = fit_law(law, {"n": n, "loss": 1.5 + 2 * np.exp(-0.7 * n)}, bootstrap=0)
    assert [e.value for e in fit.parameters.values()] == pytest.approx([1.5, 2.0, 0.7], rel=1e-8)
    assert fit.predict("loss", n=1.0).value == pytest.approx(1.5 + 2 * np.exp(-0.7))
    loaded = Fit.from_dict(fit.to_dict())
    assert loaded.to_dict() == fit.to_dict()
    assert "Python function" in str(loaded)
    with pytest.raises(UsageError, match="a file cannot store"):
        loaded.predict("loss", n=1.0)


def test_an_exponent_with_a_columns_name_is_reported_and_can_be_made_a_parameter():
    """Tables of LoRA runs have a column `alpha`, and so does an exponent in an example of the documentation."""
    D = np.geomspace(1e2, 1e6, 12)
    table = {"D": D, "alpha": np.full(12, 16.0), "loss": 1.5 + 30 * D**-0.4}
    formula = "loss = E + A/D**alpha"
    plain = forgetting.fit(table, formula, bootstrap=0)
    assert list(plain.parameters) == ["E", "A"]
    assert any(
        "'alpha' in an exponent is the column 'alpha' of the table, not a parameter" in w for w in plain.warnings
    )
    for options in ({"start": {"alpha": (0.05, 1.5)}}, {"bounds": {"alpha": (0.0, 2.0)}}):
        meant = forgetting.fit(table, formula, bootstrap=0, **options)
        assert meant.parameters["alpha"].value == pytest.approx(0.4, rel=1e-6)
        assert not any("in an exponent" in w for w in meant.warnings)
        again = FormulaLaw.from_spec(meant.spec)
        assert again.names == ("E", "A", "alpha")

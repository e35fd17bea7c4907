"""Warnings of a fit about its table: given once, with enough digits, and naming the row."""

from __future__ import annotations

import numpy as np
import pytest

import forgetting
from forgetting.analysis.fit import Estimate, show
from forgetting.analysis.fit.show import span
from forgetting.display.tables import Shown
from forgetting.errors import UsageError


def test_a_range_has_enough_digits_to_distinguish_its_ends():
    assert span(1_700_000_000, 1_700_000_400) == "1.7e+09 to 1.7000004e+09"
    assert span(0.5, 2.25) == "0.5 to 2.25"
    assert span(3.0, 3.0) == "3 to 3"
    assert span(1.0, float("nan")) == "-"


def test_undetermined_parameters_are_reported_once():
    x = np.full(8, 2.0)
    y = np.array([1.0, 2, 3, 4, 1, 2, 3, 5])
    fit = forgetting.fit({"x": x, "y": y}, "y = a + b*x", bootstrap=20)
    assert len([w for w in fit.warnings if "do not determine a" in w]) == 1


def test_a_constant_output_is_reported():
    table = {"finetune_loss": [1.0, 1.1, 1.2, 1.3], "forgetting_loss": [2.5] * 4}
    fit = forgetting.fit(table, "linear", bootstrap=0)
    assert any(w.startswith("forgetting_loss is 2.5 in every row: there is no effect to fit") for w in fit.warnings)


def test_a_negative_loss_is_named_by_its_row():
    rows = [(p, n) for p in (1e5, 1e6, 1e7) for n in (10.0, 100.0, 1000.0)]
    table = {
        "trainable_params": [p for p, _ in rows],
        "step": [n for _, n in rows],
        "finetune_loss": [1.0, 0.9, 0.8, 0.9, -0.2, 0.7, 0.8, 0.7, 0.6],
        "forgetting_loss": [2.0] * 9,
    }
    for law in ("shifted_power", "shifted_power_ft"):
        with pytest.raises(
            UsageError, match=r"row 5, column 'finetune_loss': -0\.2 where a number from 0 up is needed"
        ):
            forgetting.fit(table, law, bootstrap=0)


@pytest.mark.parametrize(
    ("estimate", "value", "ends"),
    [
        (Estimate(3e98, 1e12, 5e150, "weak"), "10^98.5", "10^12.0 to 10^150.7"),
        (Estimate(4e135, 2e-60, np.nan, "weak"), "10^135.6", "at least 10^-59.7"),
        (Estimate(1e308, 1e-308, 1e308, "weak"), "10^308.0", "10^-308.0 to 10^308.0"),
        (Estimate(4.2e8, 4.0e8, 4.5e8, "strong"), "4.2e+08", "4e+08 to 4.5e+08"),  # determined to these digits
        (Estimate(-3e98, -5e98, 1e98), "-3e+98", "-5e+98 to 1e+98"),  # negative, so it has no logarithm
        (Estimate(2e7, identified="none"), "not determined", "-"),
        (Estimate(388000.0), "3.88e+05", "-"),
    ],
)
def test_only_the_powers_of_ten_of_a_scale_known_to_decades_are_shown(estimate, value, ends):
    assert (show.value(estimate, scale=True), show.ends(estimate)) == (value, ends)


def test_powers_of_ten_are_raised_in_latex():
    table = show.latex(Shown(["h"], ("a", "b", "c", "d"), [("a_f", "10^-29.5", "10^-61.8 to 10^2.8", "")]), {})
    assert r"a\_f & $10^{-29.5}$ & $10^{-61.8}$--$10^{2.8}$ \\" in table

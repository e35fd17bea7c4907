"""Data that a law fits up to rounding: no test may find anything in the last digits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import forgetting
from forgetting.analysis.fit import rank_laws
from forgetting.analysis.fit.places import places_of
from forgetting.analysis.laws.base import is_constant

RUNS, STEPS = 8, (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0)
STEP = np.tile(STEPS, RUNS)
RUN = np.repeat(np.arange(RUNS), len(STEPS))
PARAMS = np.array([1e3, 4e3, 16e3, 64e3])[RUN % 4]
LINE, LOG, POWER = "loss = a + b*step", "loss = a + b*log(step)", "loss = a + b*step**-c"
CASES = {
    "constant": (np.full(STEP.size, 0.3), (LINE, LOG, POWER)),
    "third": (np.full(STEP.size, 1 / 3), (LINE, LOG, POWER)),
    "negative": (np.full(STEP.size, -2.1), (LINE, LOG)),
    "large constant": (np.full(STEP.size, 1e12 / 3), (LINE, LOG)),
    "line": (2.1 - 0.013 * STEP, (LINE,)),
    "line far from 0": (1e6 + (2.1 - 0.013 * STEP), (LINE,)),
    "logarithm": (3 - 0.2 * np.log(STEP), (LOG,)),
    "power law": (1.2 + 3.7 * STEP**-0.37, (POWER,)),
}
FINDINGS = ("residuals", "misses", "worse than", "not converge", "another point", "starts reached", "favour", "limit")


def last_digits(values: np.ndarray, pattern: str) -> np.ndarray:
    """The values, the last digit of some moved by one: at random, or in all rows of the late steps."""
    moved = {
        "as it is": 0.0,
        "random": np.random.default_rng(0).integers(-1, 2, values.size),
        "late": 1.0 * (STEP > 40),
    }
    return np.asarray(values + moved[pattern] * np.spacing(values))


def tabled(loss: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"run_id": RUN, "step": STEP, "trainable_params": PARAMS, "loss": loss, "seed": RUN // 2})


@pytest.mark.parametrize("pattern", ["as it is", "random", "late"])
@pytest.mark.parametrize("case", CASES)
def test_rounding_is_no_finding(case: str, pattern: str) -> None:
    values, laws = CASES[case]
    made = tabled(last_digits(values, pattern))
    for law in laws:
        for how in ({}, {"objective": "log-least-squares"}, {"intervals": "profile"}):
            if how.get("objective") and (values < 0).any():
                continue
            fit = forgetting.fit(made, law, bootstrap=20, **how)
            found = [w for w in fit.warnings if any(word in w for word in FINDINGS)]
            # a constant is a power law with any exponent, which is no matter of rounding
            if not (is_constant(values) and law == POWER):
                assert not found, (law, how)
            assert not any(one["p_holm"] < 0.05 for one in fit.diagnostics["misfit"])
            assert not any(one.p_holm < 0.05 for one in places_of(fit.diagnostics))
            effect = any("there is no effect to fit" in w for w in fit.warnings)
            assert effect == is_constant(values) == np.isnan(fit.r2["loss"])


def test_differences_above_rounding_are_found() -> None:
    """The same law and runs, where a bend is a thousand times the last digits."""
    bend = 1e-11 * ((STEP - 40) / 30) ** 2
    fit = forgetting.fit(tabled(2.1 - 0.013 * STEP + bend), LINE, bootstrap=20)
    assert any("residuals bend" in w for w in fit.warnings)


def test_equal_runs_that_contradict_the_law_are_found() -> None:
    """Runs without scatter have no standard error, but a law without an offset is wrong all the same."""
    fit = forgetting.fit(tabled(np.full(STEP.size, 0.3)), "loss = b*step", bootstrap=20)
    assert any("the law misses measured steps" in w for w in fit.warnings)


def test_the_simpler_of_two_exact_laws_is_better() -> None:
    made = tabled(2.1 - 0.013 * STEP)
    fits = [forgetting.fit(made, law, bootstrap=0) for law in (f"{LINE} + c*step**2", LINE)]
    assert [row["law"] for row in rank_laws(fits)] == [LINE, f"{LINE} + c*step**2"]


@pytest.mark.parametrize("law", ["linear", "shifted_power"])
@pytest.mark.parametrize("pattern", ["as it is", "random", "late"])
def test_constant_forgetting_is_no_finding(law: str, pattern: str) -> None:
    finetune = 1.2 + 0.3 * ((500 / PARAMS) ** 0.3 + (20 / STEP) ** 0.5) ** 0.8
    made = (
        tabled(finetune)
        .rename(columns={"loss": "finetune_loss"})
        .assign(label=np.where(RUN % 2, "a", "b"), rank=PARAMS)
    )
    made["forgetting_loss"] = last_digits(np.full(STEP.size, 0.7), pattern)
    fit = forgetting.fit(made, law, bootstrap=20)
    assert "forgetting_loss is 0.7 in every row" in "".join(fit.warnings)
    assert not [w for w in fit.warnings if any(word in w for word in FINDINGS)]
    contest = forgetting.compare(made, "label=a").contests["table"]
    assert contest.trend is not None
    assert not contest.trend.explains

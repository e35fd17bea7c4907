"""Numbers whose squares cannot be computed are refused with row and column; all others are computed right."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

import forgetting
from forgetting.errors import ForgettingError, UsageError

RUN = np.repeat(np.arange(8), 5)
STEP = np.tile([10.0, 20.0, 30.0, 40.0, 50.0], 8)
PARAMS = np.array([1e3, 4e3, 16e3, 64e3])[RUN % 4]
POWER = "loss = a + b*step**-c"
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"objective": "log-least-squares"},
    {"objective": "huber"},
    {"weights": "se"},
    {"intervals": "profile"},
)


@pytest.fixture(autouse=True)
def no_raw_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def study() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    finetune = 1.2 + 0.3 * ((500 / PARAMS) ** 0.3 + (20 / STEP) ** 0.5) ** 0.8 + rng.normal(0, 0.003, STEP.size)
    made = pd.DataFrame({"run_id": RUN, "seed": RUN // 4, "label": np.where(RUN % 2, "a", "b"), "step": STEP})
    made["trainable_params"], made["rank"] = PARAMS, PARAMS / 1000
    made["finetune_loss"] = finetune
    made["forgetting_loss"] = 2 - 0.7 * finetune + rng.normal(0, 0.003, STEP.size)
    made["forgetting_floor"] = 0.1
    made["loss"], made["loss_se"], made["finetune_loss_se"], made["forgetting_loss_se"] = finetune, 0.01, 0.01, 0.01
    return made


def changed(column: str, value: float, *, every: bool = False) -> pd.DataFrame:
    made = study()
    made[column] = made[column].astype(float)
    if every:
        made[column] *= value
    else:
        made.loc[9, column] = value
    return made


@pytest.mark.parametrize("value", [1e150, -1e150, 1e-150, 1e308, 5e-324])
@pytest.mark.parametrize("column", ["loss", "step", "loss_se"])
def test_a_fit_names_the_number(column: str, value: float) -> None:
    if value < 0 and column != "loss":
        return
    for how in WAYS:
        if value < 0 and "log" in how.get("objective", ""):
            continue
        said = f"row 10, column '{column}': {value:g} where 0 or a size of 1e-60 to 1e+60 is needed"
        with pytest.raises(UsageError, match=re.escape(said)):
            forgetting.fit(changed(column, value), POWER, bootstrap=20, **how)


@pytest.mark.parametrize("law", ["linear", "shifted_power"])
@pytest.mark.parametrize("column", ["finetune_loss", "forgetting_loss", "trainable_params", "forgetting_floor"])
def test_the_laws_of_a_study_name_the_number(law: str, column: str) -> None:
    if law == "linear" and column == "trainable_params":
        column = "rank"
    with pytest.raises(UsageError, match=rf"row 10, column '{column}': 1e\+150 where"):
        forgetting.fit(changed(column, 1e150), law, bootstrap=20)


@pytest.mark.parametrize("column", ["finetune_loss", "forgetting_loss", "step", "trainable_params"])
@pytest.mark.parametrize("value", [1e150, 1e-150])
def test_a_comparison_names_the_number(column: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"row 10, column '{column}': .* where 0 or a size of 1e-60"):
        forgetting.compare(changed(column, value), "label=a")


@pytest.mark.parametrize("unit", [1e-57, 1e-20, 1e20, 1e57])
def test_large_and_small_units_change_no_digit(unit: float) -> None:
    """Everything that is not refused is computed: the same fit in other units."""
    plain = forgetting.fit(study(), POWER, bootstrap=20)
    for how in WAYS:
        made = changed("loss", unit, every=True)
        made["loss_se"] *= unit
        fit = forgetting.fit(made, POWER, bootstrap=20, delta=1e-3 * unit, **how)
        assert np.isfinite(fit.parameters["a"].low)
        if not how:
            assert fit.theta == pytest.approx(plain.theta * [unit, unit, 1], rel=1e-6)
            assert fit.parameters["a"].low == pytest.approx(unit * plain.parameters["a"].low, rel=1e-4)
            assert fit.r2["loss"] == pytest.approx(plain.r2["loss"], rel=1e-9)
    fit = forgetting.fit(changed("step", unit / 10, every=True), POWER, bootstrap=20)
    assert fit.parameters["c"].value == pytest.approx(plain.parameters["c"].value, rel=1e-6)
    forgetting.compare(changed("finetune_loss", unit, every=True), "label=a")


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_an_output_that_a_fit_of_both_would_ignore_is_refused(unit: float) -> None:
    made = changed("forgetting_loss", unit, every=True)
    with pytest.raises(ForgettingError, match=r"_loss \(up to .*\) is over 1,000,000 times smaller than "):
        forgetting.fit(made, "shifted_power", bootstrap=0)
    made["forgetting_loss_se"] *= unit
    weighed = forgetting.fit(made, "shifted_power", bootstrap=0, weights="se")
    assert min(weighed.r2.values()) > 0.95


def test_predictions_and_plans_refuse_what_cannot_be_computed() -> None:
    fit = forgetting.fit(study(), "shifted_power", bootstrap=20)
    with pytest.raises(UsageError, match=r"step is 1e\+150 where 0 or a size"):
        forgetting.predict(fit, params=1e4, steps=1e150)
    with pytest.raises(UsageError, match="trainable_params is 1e-150 where 0 or a size"):
        forgetting.predict(fit, params=1e-150, steps=10)
    for grid in ({"params": 1e150}, {"ranks": 8, "params_per_rank": 1e150}, {"params": 1e-150}):
        with pytest.raises(UsageError, match=r"trainable parameters are .* where 0 or a size"):
            forgetting.plan(fit, budget=0.5, **grid)
    for asked in ({"budget": 1e150}, {"budget": 1e-150}, {"target_loss": 1e150}, {"target_loss": 1e-150}):
        assert str(forgetting.plan(fit, **asked))

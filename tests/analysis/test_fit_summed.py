"""Tables of many rows are fitted by sums over rows, with the same numbers as the slow twin that fits every row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from forgetting.analysis.fit import Fit, fit_law, summed
from forgetting.analysis.fit.data import read_data
from forgetting.analysis.laws import LAWS, FormulaLaw
from forgetting.analysis.laws.shifted_power import falling_slope

RANKS, STEPS, SEEDS = (1, 4, 16, 64), (20, 60, 120, 200, 260), 4


def table(distinct: bool = False) -> pd.DataFrame:
    """Runs of four ranks with noise per run and per row; `distinct` gives every run a different P."""
    rng = np.random.default_rng(5)
    rows = []
    for rank in RANKS:
        for seed in range(SEEDS):
            p = 2.5e6 * rank * (1 + 0.01 * seed * distinct)
            shift = rng.normal(0, 0.003, 2)
            for step in STEPS:
                bracket = (3e4 / p) ** 0.05 + (40 / step) ** 0.13
                tuned = 0.01 * bracket**7 + 0.6 + shift[0] + rng.normal(0, 0.001)
                forgot = 2.0 - 1.5 * tuned + shift[1] + rng.normal(0, 0.001)
                se = {"finetune_loss_se": rng.uniform(1e-3, 2e-3), "forgetting_loss_se": rng.uniform(1e-3, 2e-3)}
                cells = {"finetune_loss": tuned, "forgetting_loss": forgot, "trainable_params": p, "step": step}
                rows.append({"run_id": f"r{rank}-s{seed}", "status": "done", **cells, **se})
    return pd.DataFrame(rows)


def both(monkeypatch: pytest.MonkeyPatch, law: object, rows: pd.DataFrame, **options: object) -> tuple[Fit, Fit]:
    slow = fit_law(law, rows, label="x", **options)
    monkeypatch.setattr(summed, "LARGE", 10)
    return slow, fit_law(law, rows, label="x", **options)


@pytest.mark.full
@pytest.mark.parametrize("weights", ["none", "se"])
@pytest.mark.parametrize("law", ["linear", "shifted_power", "formula"])
def test_sums_give_the_numbers_of_the_rows(monkeypatch: pytest.MonkeyPatch, law: str, weights: str) -> None:
    formula = FormulaLaw("finetune_loss = E + A / step**alpha", ["step"])
    slow, fast = both(monkeypatch, formula if law == "formula" else law, table(), weights=weights)
    assert fast.objective_value == pytest.approx(slow.objective_value, rel=1e-10)
    assert (fast.n_points, fast.n_runs) == (slow.n_points, slow.n_runs)
    assert fast.r2 == pytest.approx(slow.r2, rel=1e-9)
    assert fast.measured_range == slow.measured_range
    for name, estimate in slow.parameters.items():
        mine = fast.parameters[name]
        assert mine.value == pytest.approx(estimate.value, rel=1e-6), name
        # ends of an interval are quantiles of refits, each as exact as its tolerance
        assert [mine.low, mine.high] == pytest.approx([estimate.low, estimate.high], rel=2e-3, nan_ok=True), name
    left, other = slow.diagnostics["leave_one_run_out"], fast.diagnostics["leave_one_run_out"]
    assert other["rmse"] == pytest.approx(left["rmse"], rel=1e-4)
    for name, noise in slow.diagnostics["run_noise"].items():
        assert fast.diagnostics["run_noise"][name] == pytest.approx(noise, rel=1e-6)
    assert fast.diagnostics["standard_errors"] == pytest.approx(slow.diagnostics["standard_errors"], rel=1e-4)
    assert fast.diagnostics["aicc"] == pytest.approx(slow.diagnostics["aicc"], rel=1e-9)


def test_rows_of_many_different_sizes_are_sampled_with_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summed, "LARGE", 50)
    monkeypatch.setattr(summed, "MOST_CELLS", 40)
    monkeypatch.setattr(summed, "most_rows", lambda problem: 40)
    fit = fit_law("shifted_power", table(distinct=True), label="x", bootstrap=0)
    assert (fit.n_points, fit.n_runs, fit.table_size) == (32, 16, (80, 16))
    assert "fitted to 32 of the 80 rows of all 16 runs" in fit.warnings[0]
    # the line needs no sample
    assert fit_law("linear", table(distinct=True), label="x").n_runs == 16


def test_a_repeated_measurement_is_still_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetting.errors import UsageError

    monkeypatch.setattr(summed, "LARGE", 10)
    rows = pd.concat([table(), table().iloc[[7]]], ignore_index=True)
    with pytest.raises(UsageError, match="rows 8 and 81 are the same run and step"):
        fit_law("linear", rows)


def test_a_frame_and_its_lists_are_read_alike() -> None:
    rows = table()
    rows.loc[3, "status"] = "failed"
    lists = {name: rows[name].tolist() for name in rows}
    one, two = (read_data(LAWS["linear"], given) for given in (rows, lists))
    assert one.runs == two.runs
    assert one.warnings == two.warnings
    np.testing.assert_array_equal(one.run, two.run)
    np.testing.assert_array_equal(one.x["finetune_loss"], two.x["finetune_loss"])


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_the_slope_of_equal_weights_is_the_plain_one(weight):
    x, y = np.random.default_rng(0).normal(size=(2, 3, 50))
    expected = [-np.polyfit(a, b, 1)[0] for a, b in zip(x, y, strict=True)]
    assert falling_slope(x, y, np.full(x.shape, weight)) == pytest.approx(expected, rel=1e-12)

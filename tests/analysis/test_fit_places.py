"""The test of single measured steps, and plans that say when measured runs contradict the law."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_fit_table1 import NAMES, PER_RANK, closed_form, table

from forgetting.analysis.fit import Fit, fit_law, load_fits, save_fits
from forgetting.analysis.fit.data import Data, read_data
from forgetting.analysis.fit.objective import Objective
from forgetting.analysis.fit.places import MOST, Place, places, places_of
from forgetting.analysis.fit.solver import Problem
from forgetting.analysis.laws import PUBLISHED, FormulaLaw
from forgetting.analysis.plan import plan_budget, plan_target

LINE = FormulaLaw("loss = a + b*step", ["step"])
RUNS = 8
STEPS = np.arange(10.0, 80.0, 10.0)
FLOOR = 0.5


def straight(rng: np.random.Generator, runs: int = RUNS) -> dict[str, np.ndarray]:
    """Runs on one line over steps, each with an offset and a slope of its own."""
    run, step = np.repeat(np.arange(runs), STEPS.size), np.tile(STEPS, runs)
    offset, slope = rng.normal(0, 0.02, (2, runs))
    noise = offset[run] + slope[run] * step / 80 + rng.normal(0, 0.01, run.size)
    return {"run_id": run, "step": step, "loss": 2 - 0.01 * step + noise}


def run_tests(made: dict[str, np.ndarray]) -> tuple[Data, list[Place]]:
    data = read_data(LINE, made)
    slope, intercept = np.polyfit(made["step"], made["loss"], 1)
    theta = np.array([intercept, slope])
    return data, places(Problem(LINE, data.x, Objective()), theta, data, np.ones_like(data.y))


@pytest.mark.full
def test_places_of_a_right_law_are_rejected_at_the_nominal_rate() -> None:
    """Runs of equal design, so the test is Student's t on the coefficients of the runs, with runs - 1 degrees."""
    alarms = any_alarm = 0
    for i in range(300):
        made = straight(np.random.default_rng([5, i]))
        _, found = run_tests(made)
        assert [one.x for one in found] == [{"step": step} for step in STEPS]
        curves = made["loss"].reshape(RUNS, -1)
        for one in found:
            basis = np.column_stack([np.ones(STEPS.size), STEPS, one.x["step"] == STEPS])
            each = np.linalg.lstsq(basis, curves.T, rcond=None)[0][2]
            assert one.p == pytest.approx(stats.ttest_1samp(each, 0.0).pvalue, rel=1e-6)
            # the size is the mean residual
            line = np.polyval(np.polyfit(made["step"], made["loss"], 1), one.x["step"])
            assert one.law == pytest.approx(line, abs=1e-9)
            assert one.law + one.size == pytest.approx(curves.mean(axis=0)[one.x["step"] == STEPS][0], abs=1e-9)
            assert one.runs == RUNS
            alarms += one.p < 0.05
        any_alarm += min(one.p_holm for one in found) < 0.05
    assert alarms / (300 * STEPS.size) == pytest.approx(0.05, abs=0.02)
    assert any_alarm <= 27  # at most 15 are due; one in a thousand such counts is larger


def missed(*, at: int = 100, by: float = 0.0, of: float = 0.0, runs: int = 4) -> pd.DataFrame:
    """A study of the law of Table 1, whose runs of the largest rank forget `by` nats more at one step."""
    made = table(NAMES[0], noise=0.003, runs_each=runs).assign(forgetting_floor=FLOOR)
    made["seed"] = np.unique(made["run_id"], return_inverse=True)[1]
    largest = made["trainable_params"] == made["trainable_params"].max()
    made.loc[largest & (made["step"] == at), "forgetting_loss"] += by
    made.loc[made["step"] == at, "forgetting_loss"] += of
    return made


def fitted(made: pd.DataFrame) -> Fit:
    return fit_law("shifted_power", made, label="d", bootstrap=40, starts=8)


@pytest.fixture(scope="module")
def contradicted() -> tuple[int, float, Fit]:
    """A step inside the range, the measured forgetting there of the largest rank, and the fit."""
    steps = sorted(missed()["step"].unique())
    at = int(steps[len(steps) // 2])
    made = missed(at=at, by=0.03)
    largest = made["trainable_params"] == made["trainable_params"].max()
    mean = float(made.loc[largest & (made["step"] == at), "forgetting_loss"].mean())
    return at, mean, fitted(made)


def test_a_fit_names_the_place_that_it_misses(contradicted: tuple[int, float, Fit]) -> None:
    at, mean, fit = contradicted
    (warning,) = [w for w in fit.warnings if "misses measured steps" in w]
    assert f"above the law at step {at}, trainable params" in warning
    assert "(mean of 4 runs; p = " in warning
    worst = max(places_of(fit.diagnostics), key=lambda one: abs(one.size))
    assert worst.output == "forgetting_loss"
    assert worst.p_holm < 0.05
    assert worst.law + worst.size == pytest.approx(mean, abs=1e-9)
    assert worst.size == pytest.approx(0.03, abs=0.008)


def test_a_right_law_has_no_such_warning() -> None:
    fit = fitted(missed())
    assert places_of(fit.diagnostics)
    assert not any("misses measured steps" in w for w in fit.warnings)
    plan = plan_budget(fit, 0.05)
    assert not any("contradict" in line for line in plan.sentences)
    out = plan.to_dict()
    assert out["places"]
    assert not any(one["contradicts"] for one in out["places"])
    assert out["crossing"] is None


def test_a_plan_says_that_measured_runs_contradict_it(contradicted: tuple[int, float, Fit], tmp_path: Path) -> None:
    at, mean, fit = contradicted
    largest = fit.measured_range["trainable_params"][1]
    law = fit.predict("forgetting_loss", trainable_params=largest, step=at).value
    plan = plan_budget(fit, float(law) - FLOOR, params=[largest])
    assert plan.best is not None
    assert plan.best.steps.value == pytest.approx(at)
    (line,) = [s for s in plan.sentences if "contradict" in s]
    assert f"at step {at}, 4 runs of this many parameters have a mean forgetting loss of {mean:.3f} ± 0.00" in line
    assert f"and the law says {law:.3f}" in line
    assert "; runs of this many parameters pass a forgetting loss of " in line
    out = plan.to_dict()
    (wrong,) = [one for one in out["places"] if one["contradicts"]]
    assert wrong["output"] == "forgetting_loss"
    assert wrong["x"] == {"step": at, "trainable_params": largest}
    assert (wrong["runs"], wrong["mean"]) == (4, pytest.approx(mean, abs=1e-9))
    assert wrong["law"] == pytest.approx(law, abs=1e-9)
    assert wrong["size"] == pytest.approx(mean - law, abs=1e-9)
    assert 0 < wrong["p"] <= wrong["p_holm"] < 0.05
    assert f"± {wrong['se']:.4f}"[:8] in line
    first, then = out["crossing"]
    assert f"between steps {first:g} and {then:g}" in line
    assert json.loads(json.dumps(out)) == out
    save_fits(fit, tmp_path / "fits.json")
    stored = load_fits(tmp_path / "fits.json")
    assert isinstance(stored, Fit)
    assert line in plan_budget(stored, float(law) - FLOOR, params=[largest]).sentences
    # far from that step, and at another rank, nothing contradicts it
    smallest = fit.measured_range["trainable_params"][0]
    for params, step in ((largest, fit.measured_range["step"][1]), (smallest, at)):
        loss = float(fit.predict("finetune_loss", trainable_params=params, step=step).value)
        assert not any("contradict" in s for s in plan_target(fit, loss, params=[params]).sentences)


def test_a_step_that_all_runs_miss_is_named_with_one_run_a_rank() -> None:
    steps = sorted(missed()["step"].unique())
    fit = fitted(missed(at=int(steps[2]), of=0.02, runs=1))
    assert {tuple(one.x) for one in places_of(fit.diagnostics)} == {("step",)}
    (warning,) = [w for w in fit.warnings if "misses measured steps" in w]
    assert f"above the law at step {steps[2]:g} (mean of " in warning


@pytest.mark.full
def test_runs_of_too_few_seeds_do_not_contradict_a_step_together() -> None:
    """They see the data in the same order, and so deviate together."""
    made = missed(at=100, of=0.02, runs=3)
    for seeds in (1, 2):
        assert not [
            one for one in places_of(fitted(made.assign(seed=made["seed"] % seeds)).diagnostics) if len(one.x) == 1
        ]
    made = missed(runs=1)
    (one,) = {len(one.x) for one in places_of(fitted(made).diagnostics)}
    assert one == 1
    assert not places_of(fitted(made.assign(seed=0)).diagnostics)


@pytest.mark.full
def test_seeds_are_read_as_names_and_a_run_without_one_is_its_own() -> None:
    made = missed(at=100, of=0.02, runs=3)
    shared = made["seed"] % 3
    plain = fitted(made.assign(seed=shared)).diagnostics["places"]
    named = fitted(made.assign(seed=shared.map(lambda seed: f"seed-{seed}"))).diagnostics["places"]
    assert plain == named
    assert len({one["p"] for one in plain}) > 1
    two = made.assign(seed=shared.where(shared < 2).map({0: "a", 1: "b"}))
    (step, *_) = [one for one in places_of(fitted(two).diagnostics) if len(one.x) == 1]
    assert step.runs == 18  # 2 seeds, and 6 runs of their own
    # a seed that some rows of a run lack is that of its other rows
    gaps = made.assign(seed=shared.where(made["step"] > 100))
    assert fitted(gaps).diagnostics["places"] == plain


def test_groups_of_runs_with_several_seeds_are_tested_by_groups() -> None:
    """All groups have the same largest seed, which made one unit of them, and no step was tested."""
    made = straight(np.random.default_rng(0), runs=18)
    made |= {"seed": made["run_id"] % 3, "model": made["run_id"] // 3, "P": 1.0 + made["run_id"] // 3}
    made["loss"] = made["loss"] + 0.2 * (made["step"] == 40)
    law = FormulaLaw("loss = a + b*step + c*P", ["step", "P"])
    with_seeds = fit_law(law, made, run="model", bootstrap=0).diagnostics["places"]
    del made["seed"]
    assert with_seeds == fit_law(law, made, run="model", bootstrap=0).diagnostics["places"]
    assert any(one["x"] == {"step": 40.0} and one["p_holm"] < 0.05 for one in with_seeds)


def test_objectives_of_logarithms_have_no_such_test() -> None:
    fit = fit_law("shifted_power", missed(by=0.03), bootstrap=0, starts=8, objective="log-least-squares")
    assert fit.diagnostics["places"] == []


@pytest.mark.full
def test_a_fit_to_a_sample_of_rows_tests_the_same_steps_of_all_runs() -> None:
    rng, p = np.random.default_rng(0), dict(PUBLISHED[NAMES[0]].parameters)
    steps = np.arange(50, 1050)
    parts = []
    for run, rank in enumerate([8, 16, 64, 128, 256] * 3):
        params = PER_RANK * rank
        losses = np.stack(closed_form(p, params, steps)) + rng.normal(0, 0.003, (2, 1)) + rng.normal(0, 1e-3, (2, 1000))
        one = {"run_id": run, "step": steps, "trainable_params": params}
        parts.append(pd.DataFrame(one | dict(zip(("finetune_loss", "forgetting_loss"), losses, strict=True))))
    fit = fit_law("shifted_power", pd.concat(parts), bootstrap=0, starts=4)
    assert "sampled_from" in fit.diagnostics
    found = places_of(fit.diagnostics)
    assert {(len(one.x), one.runs) for one in found} == {(1, 15), (2, 3)}
    assert len({one.x["step"] for one in found}) == MOST // 6


def test_the_mean_of_all_runs_is_named_if_all_miss_the_step() -> None:
    (warning,) = [w for w in fitted(missed(at=150, of=0.03)).warnings if "misses measured steps" in w]
    assert "nats/token above the law at step 150 (mean of 24 runs; p = " in warning


@pytest.mark.full
def test_a_plan_says_if_the_runs_are_past_its_level_at_the_first_step() -> None:
    first = int(missed()["step"].min())
    fit = fitted(missed(at=first, by=0.04))
    largest = fit.measured_range["trainable_params"][1]
    law = float(fit.predict("forgetting_loss", trainable_params=largest, step=first).value)
    (line,) = [s for s in plan_budget(fit, law + 0.005 - FLOOR, params=[largest]).sentences if "contradict" in s]
    assert line.endswith(f" at step {first}, the first measured")


@pytest.mark.full
def test_a_plan_says_if_too_few_steps_are_measured_to_test_the_law() -> None:
    made = missed(runs=2)
    steps = sorted(made["step"].unique())
    few = made[made["step"].isin([steps[0], steps[len(steps) // 2], steps[-1]])]
    (line,) = [s for s in plan_budget(fitted(few), 0.02).sentences if "too few to test" in s]
    assert line.startswith(f"only steps {steps[0]:g}, ")
    assert not any("too few to test" in s for s in plan_budget(fitted(made), 0.02).sentences)


def test_many_places_are_tested_at_evenly_spaced_steps() -> None:
    run, step = np.repeat(np.arange(6), 900), np.tile(np.arange(1.0, 901.0), 6)
    loss = 2 - 0.001 * step + np.random.default_rng(0).normal(0, 0.01, run.size)
    _, found = run_tests({"run_id": run, "step": step, "loss": loss})
    assert 2 <= len(found) <= MOST
    assert {found[0].x["step"], found[-1].x["step"]} == {1.0, 900.0}

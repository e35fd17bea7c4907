"""Plans against closed forms, bisection and brute force; and their texts."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from test_fit_table1 import NAMES, PER_RANK, RANKS, closed_form, table

import forgetting
from forgetting.analysis.fit import Fit, fit_from_published, fit_law, fit_study, save_fits, show
from forgetting.analysis.fit.bootstrap import finite_interval
from forgetting.analysis.fit.information import Information
from forgetting.analysis.laws import PUBLISHED
from forgetting.analysis.plan import Cost, NextRun, Plan, costs_of, load_laws, next_runs, plan_budget, plan_target
from forgetting.analysis.plan.predict import Predictions, predict_rows
from forgetting.analysis.plan.result import _steps
from forgetting.analysis.plan.surface import steps_band
from forgetting.errors import UsageError

NAMES_OF_LOSSES = ("finetune_loss", "forgetting_loss")


@pytest.fixture(scope="module")
def fitted():
    data = table(NAMES[0], noise=0.004, runs_each=2).assign(forgetting_floor=0.5)
    return fit_law("shifted_power", data, label="d", bootstrap=100, starts=16)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_budget_is_spent_to_1e_6_of_bisection(name, share):
    """The twin finds the step at which the printed formula reaches the level, one number at a time."""
    p = dict(PUBLISHED[name].parameters)
    low, high = closed_form(p, PER_RANK * 256, 50)[1], closed_form(p, PER_RANK * 8, 260)[1]
    level = low + share * (high - low)
    plan = plan_budget(fit_from_published(name), level)
    assert [c.rank for c in plan.frontier] == list(RANKS)
    for choice in plan.frontier:
        P = choice.trainable_params
        root = brentq(lambda n, P=P: closed_form(p, P, n)[1] - level, 1, 1e6, xtol=1e-12, rtol=1e-14)
        assert choice.steps.value == pytest.approx(root, rel=1e-6)
        assert choice.finetune_loss.value == pytest.approx(closed_form(p, P, root)[0], abs=1e-9)
        assert choice.forgetting_loss.value == pytest.approx(level, abs=1e-9)
        assert choice.extrapolated == (not 50 <= root <= 260)
    assert plan.best.finetune_loss.value == min(c.finetune_loss.value for c in plan.frontier)


def test_target_is_reached_to_1e_6_of_bisection():
    p = dict(PUBLISHED[NAMES[1]].parameters)
    plan = plan_target(fit_from_published(NAMES[1]), 2.05, ranks=[8, 100])
    for choice in plan.frontier:
        P = choice.trainable_params
        root = brentq(lambda n, P=P: closed_form(p, P, n)[0] - 2.05, 1, 1e6, xtol=1e-12, rtol=1e-14)
        assert choice.steps.value == pytest.approx(root, rel=1e-6)
        assert choice.forgetting_loss.value == pytest.approx(closed_form(p, P, root)[1], abs=1e-9)
    assert plan.best.forgetting_loss.value == min(c.forgetting_loss.value for c in plan.frontier)


def test_a_floor_turns_excess_into_loss():
    fit = fit_from_published(NAMES[0])
    excess, loss = plan_budget(fit, 0.15, floor=0.7), plan_budget(fit, 0.85)
    assert [c.steps.value for c in excess.frontier] == pytest.approx([c.steps.value for c in loss.frontier])
    assert excess.floor == 0.7
    assert not any("floor is unknown" in s for s in excess.sentences)
    assert any("the floor is unknown" in s for s in loss.sentences)


def test_unreachable_targets_and_budgets_are_reported():
    fit = fit_from_published(NAMES[0])
    none = plan_target(fit, 0.61)
    assert none.frontier == []
    assert none.best is None
    assert any("the law's limit is 0.6126" in s for s in none.sentences)
    assert any("for even one step" in s for s in plan_budget(fit, 0.01, ranks=[256], floor=-2.0).sentences)
    unlimited = plan_budget(fit, 1.2)
    assert all(np.isinf(c.steps.value) for c in unlimited.frontier)
    assert any("never use up the budget" in s for s in unlimited.sentences)
    limit = closed_form(dict(PUBLISHED[NAMES[0]].parameters), PER_RANK * 256, 1e300)[0]
    assert unlimited.frontier[-1].finetune_loss.value == pytest.approx(limit, abs=1e-9)
    assert json.loads(json.dumps(unlimited.to_dict()))["frontier"][0]["steps"]["value"] is None


def test_the_plan_says_if_ranks_do_not_differ_and_only_then():
    sentences = plan_budget(fit_from_published(NAMES[0]), 0.85).sentences
    assert any("no choice of rank and steps helps" in s for s in sentences)
    base = fit_from_published(NAMES[0])
    values = base.parameters
    steep = type(base)(
        **{
            **base.__dict__,
            # forgetting that hardly depends on P, while fitting does: now a higher rank is a better trade
            "parameters": values | {"a_f": type(values["a_f"])(1e-30), "a_ft": type(values["a_ft"])(1e6)},
        }
    )
    plan = plan_budget(steep, 0.985)
    assert any("between best and worst by this law's estimates alone; without intervals" in s for s in plan.sentences)
    assert not any("no choice" in s or "the choice matters:" in s for s in plan.sentences)
    assert "*" not in str(plan)


def test_choices_far_outside_the_range_are_left_out_and_named():
    fit = fit_from_published(NAMES[0])
    plan = plan_budget(fit, 0.05)
    assert plan.frontier == []
    assert plan.best is None
    text = str(plan)
    assert "outside the range: 6 of 6 choices would take 4 to 7 steps, but 50 to 260 were measured" in text
    low, high = (
        closed_form(dict(PUBLISHED[NAMES[0]].parameters), PER_RANK * r, n)[1] for r, n in ((8, 50), (256, 260))
    )
    assert f"goes from {low:.4g} to {high:.4g}; 0.05 is outside" in text
    some = plan_target(fit, 0.8247)
    assert [c.rank for c in some.frontier] == [8, 16, 32, 64, 128, 256]
    some = plan_target(fit, 0.9)
    assert all(c.steps.value >= 50 / 4 for c in some.frontier)
    assert "left out" in str(some)
    assert "forgetting floor" in str(plan_target(fit, 0.68, floor=0.5))
    assert "base model: " not in str(plan_target(fit, 0.68, floor=0.5))


@pytest.mark.full
def test_a_fit_at_one_rank_makes_no_claim_about_others(tmp_path):
    data = table(NAMES[0], noise=0.004, runs_each=6)
    data = data[data["trainable_params"] == data["trainable_params"].iloc[0]]
    one = fit_law("shifted_power", data, label="d", bootstrap=0, starts=4)
    size = float(data["trainable_params"].iloc[0])
    plan = plan_budget(one, 0.8)
    assert [c.trainable_params for c in plan.frontier] == [size]
    assert "only one number of trainable parameters was measured" in str(plan)
    assert "no choice" not in str(plan)
    with pytest.raises(UsageError, match=r"was fitted at only one number, .* and says nothing about others"):
        plan_budget(one, 0.8, params=[2 * size])
    with pytest.raises(UsageError, match="fitted at only one value of trainable_params"):
        forgetting.predict(one, params=2 * size, steps=100)
    assert len(forgetting.predict(one, params=size, steps=100).rows) == 1


def test_a_table_instead_of_a_fit_is_an_error_that_says_how_to_fit_it(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("finetune_loss,forgetting_loss\n1,2\n")
    with pytest.raises(
        UsageError, match=r"t\.csv: a table; .*a study folder or a published law's name.*forgetting fit .*t\.csv --out"
    ) as caught:
        forgetting.predict(path, steps=3)
    assert "JSON" not in str(caught.value)


@pytest.mark.full
def test_bands_of_losses_are_not_negative_and_one_run_is_never_surer_than_the_mean(fitted):
    p = fitted.predict("forgetting_loss", trainable_params=[2e7, 2e9, 2e10], step=[100, 3000, 9])
    assert (p.low >= 0).all()
    assert (p.run_low >= 0).all()
    assert (p.run_low <= p.low).all()
    assert (p.run_high >= p.high).all()


def test_no_best_is_marked_if_no_choice_helps():
    fit = fit_from_published(NAMES[0])
    for plan in (plan_budget(fit, 0.85), plan_budget(fit, 0.6), plan_target(fit, 0.76), plan_budget(fit, 1.2)):
        text = str(plan)
        assert not plan.matters
        assert "*" not in text
        assert "the best choice" not in text


@pytest.mark.full
def test_bands_cover_the_truth_and_the_floor_of_the_study_is_used(fitted):
    plan = plan_budget(fitted, 0.35)
    assert plan.level == pytest.approx(0.85)
    p = dict(PUBLISHED[NAMES[0]].parameters)
    hits = 0
    for c in plan.frontier:
        root = brentq(lambda n, P=c.trainable_params: closed_form(p, P, n)[1] - 0.85, 1, 1e6)
        hits += c.steps.low <= root <= c.steps.high
        hits += c.finetune_loss.low <= closed_form(p, c.trainable_params, root)[0] <= c.finetune_loss.high
        assert np.isnan(c.forgetting_loss.low)
    assert hits >= 10  # of 12


def test_unlimited_steps_have_the_limits_band_or_none_with_the_reason(fitted):
    alone = replace(fitted, rivals=())
    for c in plan_budget(alone, 5.0).frontier:
        assert np.isinf(c.steps.value)
        far = [alone.predict(n, trainable_params=c.trainable_params, step=1e15) for n in NAMES_OF_LOSSES]
        for e, p in zip((c.finetune_loss, c.forgetting_loss), far, strict=True):
            assert [e.value, e.low, e.high] == pytest.approx([float(p.value), float(p.low), float(p.high)], rel=1e-3)
    assert fitted.rivals  # quadratic laws, which diverge and have no limit
    plan = plan_budget(fitted, 5.0)
    assert all(np.isnan([e.low, e.high]).all() for c in plan.frontier for e in (c.finetune_loss, c.forgetting_loss))
    assert all(np.isnan(band).all() for c in plan.frontier for band in c.new_run.values())
    assert any("the limit of this law has no band, because laws that fit about as well" in s for s in plan.sentences)


def test_without_intervals_no_choice_is_marked_as_best():
    few = table(NAMES[0], noise=0.004)
    few = few[few["rank"].isin([8, 64, 128, 256])].assign(forgetting_floor=0.5)
    made = fit_law("shifted_power", few, label="d", bootstrap=100, starts=4)
    plan = plan_budget(made, 0.35)
    assert "*" not in str(plan)
    assert "4 runs are too few to resample" in str(plan)
    assert not any("the choice matters:" in s for s in plan.sentences)
    with pytest.raises(UsageError, match=r"this law has no intervals: 4 runs are too few to resample"):
        forgetting.plan(made, budget=0.35, next_run=True)
    assert "no bands, because this law has no intervals: 4 runs are too few" in str(
        forgetting.predict(made, ranks=8, steps=100)
    )


def test_a_choice_does_not_matter_for_lack_of_a_band(fitted):
    """If too many draws are lost for a band of the difference, the difference is not clear."""
    draws = np.array(fitted.draws)
    draws[::3] = np.nan
    plan = plan_budget(replace(fitted, draws=draws.tolist(), rivals=()), 0.35)
    assert not plan.matters
    assert any("without a band of the difference it is unclear whether the choice matters" in s for s in plan.sentences)


def test_choices_that_spend_the_budget_before_the_first_step_are_counted():
    published = fit_from_published(NAMES[0])
    p = dict(PUBLISHED[NAMES[0]].parameters)
    level = closed_form(p, PER_RANK * 128, 1.0)[1]  # rank 256 reaches it before the first step
    plan = plan_budget(published, level + 5, floor=-5.0, ranks=[8, 64, 256])
    assert "1 of 3 choices spends this budget before the first step; it is left out" in plan.sentences
    assert any("outside the range: 2 of 3 choices would take 1 step, but" in s for s in plan.sentences)


def test_shares_are_whole_percents_that_add_up_to_100():
    text = show.shares({"a": 0.335, "b": 0.335, "c": 0.33})
    assert text == "a (34%), b (33%), c (33%)"
    assert show.shares({"a": 0.995, "b": 0.005}) in ("a (100%)", "a (99%), b (1%)")


def test_cost_is_tokens_and_flops():
    plan = plan_budget(fit_from_published(NAMES[0]), 0.85, ranks=[8], cost=Cost(32 * 512, 6_738_415_616))
    (c,) = plan.frontier
    assert c.tokens == pytest.approx(c.steps.value * 32 * 512)
    assert c.flops == pytest.approx(c.tokens * (4 * 6_738_415_616 + 6 * 8 * PER_RANK))


def test_the_cost_of_a_step_comes_from_a_studys_runs():
    """Tokens, and seconds that grow with P, by data set; failed runs and other laws say nothing."""
    rows = [
        {
            "dataset": "d", "run_id": f"{params}-{seed}", "status": "done", "trainable_params": params, "step": step,
            "train_tokens": 500 * step, "train_seconds": step * (0.2 + 1e-6 * params),
        }
        for params in (1e5, 2e5, 4e5) for seed in (0, 1) for step in (0, 50, 100)
    ]  # fmt: skip
    rows.append(rows[-1] | {"run_id": "f", "status": "failed", "train_seconds": 1e9})
    costs = costs_of(SimpleNamespace(table=pd.DataFrame(rows)))
    assert list(costs) == ["d"]
    assert costs["d"].tokens(60) == 30_000
    assert costs["d"].hours(90, 3e5) == pytest.approx(90 * 0.5 / 3600)
    assert costs["d"].flops(90, 3e5) is None
    sized = pd.DataFrame(rows).assign(model_params=2e6)
    assert costs_of(SimpleNamespace(table=sized))["d"].flops(90, 3e5) == 500 * 90 * (4 * 2e6 + 6 * 3e5)
    assert costs_of(SimpleNamespace(table=sized))["d"].flops(90, 2e6) == 500 * 90 * 6 * 2e6  # all of it is trained
    sized.loc[:5, "model_params"] = 3e6  # of two base models
    assert costs_of(SimpleNamespace(table=sized))["d"].flops(90, 3e5) is None
    assert costs_of("kalajdzievski2024/openorca") == costs_of({}) == {}


def test_a_given_batch_or_context_is_completed_from_the_study_or_refused(fitted):
    rows = [
        {"dataset": "d", "run_id": str(rank), "status": "done", "trainable_params": rank * PER_RANK, "step": 100,
         "train_tokens": 9_000, "train_seconds": 5.0, "model_params": 1e9}
        for rank in RANKS
    ]  # fmt: skip
    config = SimpleNamespace(training=SimpleNamespace(batch_size=8), context=64)
    study = SimpleNamespace(fits={"d": {"shifted_power": fitted}}, table=pd.DataFrame(rows), config=config)
    for given, per_step in (
        ({}, 90),
        ({"batch": 16}, 16 * 64),
        ({"context": 32}, 8 * 32),
        ({"batch": 2, "context": 4}, 8),
    ):
        (choice,) = forgetting.plan(study, budget=0.35, ranks=8, **given)["d"].frontier
        assert choice.tokens == pytest.approx(per_step * choice.steps.value)
        assert (choice.flops is None, choice.hours is None) == (False, bool(given))
    for name, other in (("batch", "context"), ("context", "batch")):
        with pytest.raises(UsageError, match=f"'d' does not know its {other}, .* give {other} as well"):
            forgetting.plan(fitted, budget=0.35, **{name: 16})


def explicit_error(fit: Fit, plan: Plan, run: NextRun | None) -> float:
    """The answer's standard error by least squares, from full matrices of the fitted rows and a further run's."""
    law, theta, _ = fit.model()
    log = np.array([p.log for p in law.parameters])
    x, groups = dict(fit.data.x), fit.data.run
    if run is not None:
        more = {"trainable_params": np.full(22, run.trainable_params), "step": np.linspace(50, run.steps, 22)}
        x = {k: np.concatenate([v, more[k]]) for k, v in x.items()}
        groups = np.concatenate([groups, np.full(22, groups.max() + 1)])
    jacobian = (law.gradient(theta[None], x)[0] * np.where(log, theta, 1.0)).reshape(2 * len(groups), -1)
    noise = []
    for output in law.outputs:
        within = fit.diagnostics["run_noise"][output]["within"] ** 2
        offset = fit.diagnostics["scatter"][output] ** 2 - within
        noise.append(offset * (groups[:, None] == groups) + within * np.eye(len(groups)))
    zero = np.zeros_like(noise[0])
    pull = np.linalg.pinv(jacobian, rcond=1e-9)
    covariance = pull @ np.block([[noise[0], zero], [zero, noise[1]]]) @ pull.T

    def answer(z: np.ndarray) -> float:
        def losses(n: float) -> np.ndarray:
            at = {"trainable_params": np.array([plan.best.trainable_params]), "step": np.array([n])}
            return law.values(np.where(log, np.exp(z), z)[None], at)[0, :, 0]

        return float(losses(brentq(lambda n: losses(n)[1] - plan.level, 1, 1e6, xtol=1e-9, rtol=1e-14))[0])

    with np.errstate(all="ignore"):
        z = np.where(log, np.log(theta), theta)
    slope = np.array([(answer(z + h) - answer(z - h)) / 2e-5 for h in 1e-5 * np.eye(z.size)])
    return float(np.sqrt(slope @ covariance @ slope))


def test_next_run_equals_least_squares_with_the_added_run(fitted):
    plan = plan_budget(fitted, 0.35)
    assert not plan.best.extrapolated
    candidates = [(float(r), float(r * PER_RANK)) for r in RANKS]
    runs = next_runs(fitted, plan, candidates, max_steps=260)
    assert {r.rank for r in runs} == {float(r) for r in RANKS}
    assert [r.se_after for r in runs] == sorted(r.se_after for r in runs)
    assert all(0 <= r.narrowing <= 1 and r.se_after <= r.se_before for r in runs)
    for run in runs:
        assert run.se_before == pytest.approx(explicit_error(fitted, plan, None), rel=1e-3)
        assert run.se_after == pytest.approx(explicit_error(fitted, plan, run), rel=1e-3)
    stored = type(fitted).from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert next_runs(stored, plan, candidates, max_steps=260) == runs


def test_next_run_outside_also_counts_what_laws_disagree_on(fitted):
    plan = plan_budget(fitted, 0.39, ranks=[8])
    assert plan.best.extrapolated
    alone = replace(fitted, rivals=())
    candidates = [(8.0, 8.0 * PER_RANK)]
    near, far = (next_runs(fitted, plan, candidates, max_steps=n)[0] for n in (260, 800))
    bare = next_runs(alone, plan_budget(alone, 0.39, ranks=[8]), candidates, max_steps=260)[0]
    assert near.se_before > bare.se_before  # the laws disagree there
    assert far.se_before == near.se_before
    assert far.narrowing > 1.2 * near.narrowing  # and a run that goes there tells them apart


def test_the_variance_of_a_line_with_one_run_more_is_the_closed_form():
    """y = a + b x, runs of m rows at one x each: Var = (b2 + w2 / m) (1 / R + (x0 - mean)^2 / Sxx)."""
    rows = 5

    def run(x: float) -> np.ndarray:
        return np.tile([[[1.0, x]]], (1, rows, 1))

    known = Information(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)))
    places = [0.0, 1.0, 1.0, 4.0]
    for x in places:
        known = known.plus(run(x))
    noise = {"offset": [0.3], "within": [0.2]}
    at, free = np.array([1.0, 6.0]), np.array([True, True])

    def closed(places: list[float]) -> float:
        x = np.array(places)
        return (0.3 + 0.2 / rows) * (1 / len(x) + (6 - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))

    assert known.variance(at, free, **noise) == pytest.approx(closed(places), rel=1e-12)
    after = {x: known.plus(run(x)).variance(at, free, **noise) for x in (-3.0, 0.0, 2.0, 5.0, 7.0)}
    for x, variance in after.items():
        assert variance == pytest.approx(closed([*places, x]), rel=1e-12)
    assert sorted(after, key=after.__getitem__) == sorted(after, key=lambda x: closed([*places, x]))


@pytest.mark.full
def test_next_run_needs_runs_and_an_answer(fitted):
    bare = fit_from_published(NAMES[0])
    with pytest.raises(UsageError, match="needs a law fitted to several runs"):
        next_runs(bare, plan_budget(bare, 0.85), [(8.0, 8.0 * PER_RANK)], max_steps=260)
    with pytest.raises(UsageError, match="no choice reaches"):
        next_runs(fitted, plan_target(fitted, 0.1), [(8.0, 8.0 * PER_RANK)], max_steps=260)
    with pytest.raises(UsageError, match="end before the first measured step"):
        next_runs(fitted, plan_budget(fitted, 0.35), [(8.0, 8.0 * PER_RANK)], max_steps=50)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"budget": 0.0}, "must be a positive number"),
        ({"budget": float("nan")}, "must be a positive number"),
        ({"budget": 0.8, "ranks": [0]}, "give positive numbers"),
        ({"budget": 0.8, "params": []}, "give positive numbers"),
    ],
)
def test_plans_refuse_values_out_of_range(arguments, says):
    with pytest.raises(UsageError, match=says):
        plan_budget(fit_from_published(NAMES[0]), arguments.pop("budget"), **arguments)


@pytest.mark.parametrize("wrong", [0, -1, np.nan, np.inf])
def test_parameters_of_a_rank_are_positive(wrong):
    for function, given in ((forgetting.plan, {"budget": 0.85}), (forgetting.predict, {"ranks": 8, "steps": 50})):
        with pytest.raises(UsageError, match=r"params_per_rank \(--params-per-rank\): got .*; give a positive number"):
            function(NAMES[0], **given, params_per_rank=wrong)


def test_a_rank_given_twice_is_not_compared_with_itself():
    once, twice = (plan_budget(fit_from_published(NAMES[0]), 0.85, ranks=ranks) for ranks in ([8], [8, 8.0]))
    assert twice.to_dict() == once.to_dict()


def test_plans_refuse_other_laws_and_unknown_ranks():
    with pytest.raises(UsageError, match="needs law 'shifted_power'"):
        plan_budget(fit_from_published("besiroglu2024/chinchilla"), 0.1)
    data = table(NAMES[0]).drop(columns="rank")
    fit = fit_law("shifted_power", data, bootstrap=0)
    with pytest.raises(UsageError, match="how many parameters a rank has"):
        plan_budget(fit, 0.8, ranks=[8])
    assert len(plan_budget(fit, 0.8).frontier) == 6
    assert plan_budget(fit, 0.8, ranks=[8], params_per_rank=PER_RANK).frontier[0].rank == 8


def test_laws_are_found_by_name_file_and_folder(tmp_path):
    fits = fit_study(table(NAMES[0]), bootstrap=0)
    save_fits(fits, tmp_path / "fits.json")
    save_fits(fits["d"]["linear"], tmp_path / "one.json")
    assert list(load_laws(tmp_path)["d"]) == ["linear", "shifted_power"]
    assert list(load_laws(tmp_path / "fits.json", "d")) == ["d"]
    assert list(load_laws(tmp_path / "one.json")["d"]) == ["linear"]
    assert list(load_laws(NAMES[0])[NAMES[0]]) == ["shifted_power"]
    with pytest.raises(UsageError, match="no data set 'e'"):
        load_laws(tmp_path, "e")
    with pytest.raises(UsageError, match="did you mean 'kalajdzievski2024/news'"):
        load_laws("kalajdzievski2024/new")
    save_fits({}, tmp_path / "none.json")
    with pytest.raises(UsageError, match="it contains no fits"):
        load_laws(tmp_path / "none.json")


def test_predictions_say_when_they_are_outside_the_measured_range(fitted):
    rows = predict_rows(fitted, "d", {"step": [100, 2000]}, ranks=[8, 512])
    assert len(rows) == 4
    assert [r["extrapolated"] for r in rows] == [False, True, True, True]
    assert rows[0]["forgetting"]["value"] == pytest.approx(rows[0]["forgetting_loss"]["value"] - 0.5)
    text = str(Predictions(tuple(rows)))
    assert text.count("outside the measured range") == 3
    with pytest.raises(UsageError, match="also needs trainable_params"):
        predict_rows(fitted, "d", {"step": [100]})
    with pytest.raises(UsageError, match="has no variable 'steps'; did you mean 'step'"):
        predict_rows(fitted, "d", {"steps": [100]}, ranks=[8])
    with pytest.raises(UsageError, match=r"step is .* where a positive number is needed"):
        predict_rows(fitted, "d", {"step": [-1]}, ranks=[8])


def test_a_plan_reads_as_text(fitted):
    plan = plan_budget(fitted, 0.35, cost=Cost(32 * 512, 1e9))
    text = str(replace(plan, next_runs=next_runs(fitted, plan, [(8.0, 8.0 * PER_RANK)], max_steps=260)))
    assert "forgetting loss held at 0.85" in text
    assert "rank 8 for 260 steps" in text
    assert text.count("\n") > 10


def test_parameters_are_counted_from_the_configuration_alone(tmp_path):
    """Two of Llama 2 7B's 32 layers: a sixteenth of the paper's 2,498,560 trainable parameters a rank."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096}
    config |= {"intermediate_size": 11008, "num_hidden_layers": 2, "num_attention_heads": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    from forgetting.analysis.plan.count import count_model

    counted = count_model(str(tmp_path))
    assert counted.params_per_rank * 16 == PER_RANK
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert counted.model_params == 2 * 32000 * 4096 + 2 * layer + 4096
    assert counted.model_params + 30 * layer == 6_738_415_616  # the whole model's known size
    assert count_model(str(tmp_path), ("q_proj", "v_proj")).params_per_rank == 2 * 2 * (4096 + 4096)
    with pytest.raises(UsageError, match=r"has no linear module called c_attn; it has down_proj"):
        count_model(str(tmp_path), ("c_attn",))
    with pytest.raises(UsageError, match="no such folder"):
        count_model(str(tmp_path / "nowhere"))


def test_a_fit_of_pandas_rows_with_missing_ranks_still_plans():
    data = table(NAMES[0]).assign(rank=pd.array([None] * 132, dtype="Int64"))
    assert "params_per_rank" not in fit_law("shifted_power", data, bootstrap=0).diagnostics


def test_draws_that_never_reach_the_level_count_as_the_longest():
    """Before, they were left out of the band of steps, whose upper end was then too low."""
    fit = SimpleNamespace(confidence=0.95, widen=1.2)
    draws = np.exp(np.random.default_rng(0).normal(np.log(100), 0.2, 200))
    low, high, _ = finite_interval(np.log([100.0]), np.log(draws)[:, None], 0.95, 1.2)
    whole = steps_band(fit, 100.0, draws)
    assert [whole.low, whole.high] == pytest.approx([np.exp(low[0]), np.exp(high[0])], rel=1e-12)
    order = np.argsort(draws)
    for never, unlimited in ((3, False), (20, True), (100, True)):
        changed = draws.copy()
        changed[order[200 - never :]] = np.inf
        made = steps_band(fit, 100.0, changed)
        assert made.low == whole.low
        assert made.high == (np.inf if unlimited else whole.high)
    assert np.isnan(steps_band(fit, 100.0, np.full(200, np.inf)).low)
    assert _steps(steps_band(fit, 100.0, changed)) == f"100 (at least {whole.low:.0f})"

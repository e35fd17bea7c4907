"""Laws over the share of replay and the weight of KL: their runs, plain laws unaffected by them, and plans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import forgetting
from forgetting.analysis.fit import Fit, fit_study, load_fits, save_fits
from forgetting.analysis.laws import LAWS
from forgetting.analysis.plan.mitigated import plan_mitigated
from forgetting.cli import laws
from forgetting.display.numbers import number
from forgetting.errors import UsageError
from forgetting.reporting import aggregate
from forgetting.reporting.figures import charts
from forgetting.reporting.mitigated import sections_of
from forgetting.reporting.series import group, panels, tidy
from forgetting.store.table import fitted_rows, rows_to_fit

app = typer.Typer(pretty_exceptions_enable=False)
app.command("predict")(laws.predict_command)
app.command("plan")(laws.plan_command)
PER_RANK = 12_320
FLOOR = 0.65
SHARES = (0.0, 0.01, 0.05, 0.2)
STEPS = np.arange(12, 61, 8)
THETA = {
    **{"a_ft": 2e4, "alpha_ft": 0.3, "b_ft": 20.0, "beta_ft": 0.4, "s_ft": 0.5},
    **{"a_f": 2e2, "alpha_f": 0.2, "b_f": 0.4, "beta_f": 0.3, "s_f": 0.6},
    **{"rho": 1.5, "m": 12.0, "k": 1.6, "g": 0.3, "c": 0.3},
}


WEIGHTS = (0.03, 0.1, 1.0)
KL_THETA = THETA | {"m": 18.0, "k": 2.1, "g": 0.4, "u": 0.1, "c": -0.09, "d": 0.03}


def truth_of_kl(params: float, steps: np.ndarray, weight: float) -> np.ndarray:
    """[2, n]: fine-tuning loss and forgetting."""
    law = LAWS["kl"]
    x = {"trainable_params": np.full(len(steps), params), "step": steps, "kl_weight": np.full(len(steps), weight)}
    return law.values(np.array([[KL_THETA[name] for name in law.names]]), x)[0]


def truth(params: float, steps: np.ndarray, share: float) -> np.ndarray:
    """[2, n]: fine-tuning loss and forgetting."""
    law = LAWS["replay"]
    x = {"trainable_params": np.full(len(steps), params), "step": steps, "replay_fraction": np.full(len(steps), share)}
    return law.values(np.array([[THETA[name] for name in law.names]]), x)[0]


def simulated(seed: int = 0, noise: float = 0.003) -> pd.DataFrame:
    """A study's table of three ranks with and without replay, and of runs that no law is fitted to."""
    rng = np.random.default_rng(seed)
    kinds = [("" if p == 0 else "replay" if p == 0.05 else f"replay fraction={p:g}", p) for p in SHARES]
    kinds += [("budget", 0.0), ("replay fraction=0.5 generated=True", 0.5), ("replay fraction=0.02 + kl", 0.02)]
    return pd.DataFrame(
        [row for rank in (8, 16, 64) for name, p in kinds for row in _rows(rank, name, p, 0.0, rng, noise)]
    )


def with_kl(seed: int = 0, noise: float = 0.003) -> pd.DataFrame:
    """The same table with runs of KL, of which those with another direction are fewer."""
    rng = np.random.default_rng([seed, 1])
    kinds = [("kl" if w == 1 else f"kl weight={w:g}", w) for w in WEIGHTS]
    kinds += [("kl weight=0.3 direction=reverse", 0.3)]
    rows = [row for rank in (8, 16, 64) for name, w in kinds for row in _rows(rank, name, 0.0, w, rng, noise)]
    table = pd.concat([simulated(seed, noise), pd.DataFrame(rows)], ignore_index=True)
    both = table["mitigation"].str.contains(r"\+ kl")
    return table.assign(kl_weight=table["kl_weight"].mask(both, 1.0).mask(table["mitigation"] == "budget"))


def _rows(
    rank: int, mitigation: str, share: float, weight: float, rng: np.random.Generator, noise: float
) -> list[dict[str, object]]:
    """The rows of one run."""
    rows: list[dict[str, object]] = []
    means = truth_of_kl(rank * PER_RANK, STEPS, weight) if weight else truth(rank * PER_RANK, STEPS, share)
    losses = means + noise * rng.normal(size=(2, 1))
    losses += noise / 2 * rng.normal(size=losses.shape)
    for step, (tuned, forgot) in zip(STEPS, losses.T, strict=True):
        row = {"dataset": "d", "label": "lora", "reference": "lora", "mitigation": mitigation, "rank": rank}
        row |= {"run_id": f"{rank}-{mitigation}", "status": "done", "step": step, "measure_start": 12}
        row |= {"trainable_params": rank * PER_RANK, "replay_fraction": share, "kl_weight": weight}
        row |= {"forgetting_floor": FLOOR}
        rows.append(row | {"finetune_loss": tuned, "forgetting": forgot, "forgetting_loss": forgot + FLOOR})
    return rows


def _fitted(table: pd.DataFrame) -> dict[str, Fit]:
    rows, along = rows_to_fit(table)
    return fit_study(rows, along=along, bootstrap=40)["d"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulated()


@pytest.fixture(scope="module")
def fits(table: pd.DataFrame) -> dict[str, Fit]:
    return _fitted(table)


def test_runs_with_replay_alone_are_used_only_by_the_law_of_replay(table: pd.DataFrame) -> None:
    plain, wider = fitted_rows(table), rows_to_fit(table)[1]["replay"]
    assert set(plain["mitigation"]) == {""}
    assert set(wider["mitigation"]) == {"", "replay", "replay fraction=0.01", "replay fraction=0.2"}


def test_laws_of_plain_runs_ignore_runs_with_replay(table: pd.DataFrame, fits: dict[str, Fit]) -> None:
    alone = fit_study(fitted_rows(table[table["mitigation"] == ""]), bootstrap=40)["d"]
    assert list(fits) == ["linear", "shifted_power", "replay"]
    for name, fit in alone.items():
        assert fits[name].to_dict() == fit.to_dict()


def test_the_law_is_recovered_from_noisy_runs(fits: dict[str, Fit]) -> None:
    fit = fits["replay"]
    assert fit.n_runs == 12
    assert fit.measured_range["replay_fraction"] == (0.0, 0.2)
    for name in ("k", "g", "c", "m"):
        assert fit.parameters[name].low <= THETA[name] <= fit.parameters[name].high
    got = [
        fit.predict(o, trainable_params=32 * PER_RANK, step=44, replay_fraction=0.1).value
        for o in fit.law_object.outputs
    ]
    assert np.ravel(got) == pytest.approx(truth(32 * PER_RANK, np.array([44.0]), 0.1)[:, 0], abs=0.005)


def test_a_stored_fit_predicts_the_same(fits: dict[str, Fit], tmp_path: Path) -> None:
    save_fits(fits["replay"], tmp_path / "fits.json")
    again = load_fits(tmp_path / "fits.json")
    at = {"trainable_params": 1e5, "step": 30, "replay_fraction": [0.0, 0.03, 0.3]}
    for output in fits["replay"].law_object.outputs:
        one, other = fits["replay"].predict(output, **at), again.predict(output, **at)
        assert np.array_equal(one.value, other.value)
        assert np.array_equal(one.run_high, other.run_high)
        assert list(one.extrapolated) == [False, False, True]


def test_a_law_over_the_share_is_fitted_on_its_runs_by_name_and_by_formula(table: pd.DataFrame) -> None:
    assert forgetting.fit(table, "replay", bootstrap=0).n_runs == 12
    formula = "forgetting = A * step**b / (1 + B * replay_fraction)"
    assert forgetting.fit(table, formula, bootstrap=0).n_runs == 12
    assert forgetting.fit(table, "linear", bootstrap=0).n_runs == 3


@pytest.fixture(scope="module")
def both() -> dict[str, Fit]:
    """The fits of a study with replay and with KL."""
    table = with_kl()
    return _fitted(table)


def test_each_law_uses_the_runs_of_its_own_mitigation(both: dict[str, Fit], fits: dict[str, Fit]) -> None:
    _, rows = rows_to_fit(with_kl())
    assert set(rows["kl"]["mitigation"]) == {"", "kl", "kl weight=0.03", "kl weight=0.1"}
    assert set(rows["replay"]["mitigation"]) == {"", "replay", "replay fraction=0.01", "replay fraction=0.2"}
    assert list(both) == ["linear", "shifted_power", "replay", "kl"]
    for name, fit in fits.items():  # those of the same study without KL, to the last digit
        assert both[name].to_dict() == fit.to_dict()
    assert both["kl"].n_runs == 12
    assert both["kl"].measured_range["kl_weight"] == (0.0, 1.0)
    assert forgetting.fit(with_kl(), "forgetting = A * step**b / (1 + B * kl_weight)", bootstrap=0).n_runs == 12
    with pytest.raises(UsageError, match="has replay_fraction and kl_weight: runs with several mitigations"):
        forgetting.fit(with_kl(), "forgetting = A * step**b / (1 + B * kl_weight + C * replay_fraction)", bootstrap=0)


def test_the_law_of_kl_is_recovered_and_stored(both: dict[str, Fit], tmp_path: Path) -> None:
    fit = both["kl"]
    for name in ("k", "g", "u", "c", "d", "m"):
        estimate = fit.parameters[name]
        assert not estimate.low > KL_THETA[name], name  # an end that is not determined is NaN
        assert not estimate.high < KL_THETA[name], name
    at = {"trainable_params": 32 * PER_RANK, "step": 44, "kl_weight": 0.3}
    got = [fit.predict(output, **at).value for output in fit.law_object.outputs]
    assert np.ravel(got) == pytest.approx(truth_of_kl(32 * PER_RANK, np.array([44.0]), 0.3)[:, 0], abs=0.005)
    save_fits(fit, tmp_path / "fits.json")
    again = load_fits(tmp_path / "fits.json")
    for output in fit.law_object.outputs:
        assert fit.predict(output, **at).run_high == again.predict(output, **at).run_high


# ---- plans


def test_a_plan_with_kl_is_the_best_of_all_runs_within_its_budget(both: dict[str, Fit]) -> None:
    plan = forgetting.plan(both["kl"], budget=0.12)["d"]
    steps, weights = np.meshgrid(np.arange(3.0, 61.0), np.linspace(0, 1, 1001), indexing="ij")
    found = np.inf
    law, theta, _ = both["kl"].model()
    for rank in (8, 16, 32, 64):
        params = np.full(steps.size, rank * PER_RANK)
        x = {"trainable_params": params, "step": steps.ravel(), "kl_weight": weights.ravel()}
        tuned, forgot = law.values(theta[None], x)[0]
        found = min(found, tuned[forgot <= 0.12].min())
    assert plan.best.finetune_loss.value == pytest.approx(found, abs=5e-4)
    assert plan.best.forgetting.value == pytest.approx(0.12, abs=1e-6)
    assert plan.stops_paying.low < plan.stops_paying.value == plan.best.kl_weight < plan.stops_paying.high
    assert plan.sentences[0].startswith("KL stops paying at a weight of")


def test_a_study_with_both_mitigations_plans_with_the_better_one(both: dict[str, Fit], tmp_path: Path) -> None:
    plans = {name: forgetting.plan({"d": both}, budget=0.12, **{name: 0})["d"] for name in ("kl", "replay")}
    assert [plan.axis.name for plan in plans.values()] == ["replay", "kl"]
    better = min(plans.values(), key=lambda plan: plan.best.finetune_loss.value)
    made = forgetting.plan({"d": both}, budget=0.12)["d"]
    assert made.best == better.best
    other = {"kl": "replay", "replay": "KL"}[better.axis.name]
    assert made.sentences[-1].startswith(f"{other} instead reaches a fine-tuning loss of")
    assert made.sentences[-1].endswith(f"(--{better.axis.name} 0 shows this plan)")
    plain = forgetting.plan({"d": both}, budget=0.12, kl=0, replay=0)["d"]
    assert plain.output == "forgetting_loss"
    one = forgetting.plan({"d": both}, budget=0.12, kl=[0.1, 2.0])["d"]
    assert [choice.extrapolated for choice in one.frontier] == [False, True]
    for ask in (forgetting.plan, forgetting.predict):
        how = {"budget": 0.1} if ask is forgetting.plan else {"ranks": 8, "steps": 60}
        with pytest.raises(UsageError, match=r"replay \(--replay\) and kl \(--kl\): no law describes runs with both"):
            ask({"d": both}, kl=0.1, replay=0.1, **how)
        with pytest.raises(UsageError, match=r"kl \(--kl\): got -1; a weight from 0|kl_weight is -1"):
            ask({"d": both}, kl=-1, **how)
    save_fits({"d": both}, tmp_path / "fits.json")
    run = CliRunner().invoke
    made = json.loads(
        run(app, ["plan", str(tmp_path / "fits.json"), "--budget", "0.12", "--replay", "0", "--json"]).stdout
    )
    assert (made["mitigation"], made["best"]["kl_weight"]) == ("kl", made["stops_paying"]["value"])
    at = ["--rank", "16", "--steps", "44", "--kl", "0.1", "--kl", "3", "--replay", "0", "--json"]
    one, far = json.loads(run(app, ["predict", str(tmp_path / "fits.json"), *at]).stdout)
    assert (one["kl_weight"], one["extrapolated"], far["extrapolated"]) == (0.1, False, True)


def losses(fit: Fit, rank: float, steps: np.ndarray | float, share: np.ndarray | float) -> list[np.ndarray]:
    at = {"trainable_params": rank * PER_RANK, "step": steps, "replay_fraction": share}
    return [fit.predict(output, **at).value for output in ("finetune_loss", "forgetting")]


@pytest.mark.parametrize("budget", [0.12, 0.2])
def test_a_plan_is_the_best_of_all_runs_within_its_budget(fits: dict[str, Fit], budget: float) -> None:
    """Against brute force over ranks, whole steps and shares; where replay stops paying, against the closed form."""
    plan = forgetting.plan(fits["replay"], budget=budget)["d"]
    best = plan.best
    steps, shares = np.meshgrid(np.arange(3.0, 61.0), np.linspace(0, 0.2, 401), indexing="ij")
    found = np.inf
    for rank in (8, 16, 32, 64):
        tuned, forgot = losses(fits["replay"], rank, steps, shares)
        found = min(found, tuned[forgot <= budget].min())
    assert best.finetune_loss.value == pytest.approx(found, abs=5e-4)
    assert best.forgetting.value <= budget + 1e-6
    assert best.forgetting_loss.value == pytest.approx(best.forgetting.value + FLOOR)
    plain = losses(fits["replay"], best.rank, 60.0, 0.0)[1]
    m, k, g = (fits["replay"].parameters[name].value for name in ("m", "k", "g"))
    strength = (60 / m) ** k * (best.trainable_params / 1e6) ** g
    assert plan.stops_paying.value == pytest.approx((plain / budget - 1) / strength, rel=1e-6)
    assert plan.stops_paying.low < plan.stops_paying.value < plan.stops_paying.high
    assert plan.saved.low > 0
    assert best.steps.value == 60
    assert best.new_run["forgetting"][0] < budget < best.new_run["forgetting"][1]


def test_a_plan_for_a_target_forgets_least(fits: dict[str, Fit]) -> None:
    plan = forgetting.plan(fits["replay"], target_loss=1.6)["d"]
    steps, shares = np.meshgrid(np.arange(3.0, 60.01, 0.25), np.linspace(0, 0.2, 201), indexing="ij")
    found = np.inf
    for rank in (8, 16, 32, 64):
        tuned, forgot = losses(fits["replay"], rank, steps, shares)
        found = min(found, forgot[tuned <= 1.6].min(initial=np.inf))
    assert plan.best.forgetting.value == pytest.approx(found, abs=3e-3)
    for choice in plan.frontier:  # enough whole steps, and no more
        assert choice.finetune_loss.value <= 1.6 + 1e-4
        if choice.steps.value < 60:
            assert losses(fits["replay"], choice.rank, choice.steps.value - 1, choice.replay_fraction)[0] > 1.6 - 1e-4


def test_a_plan_reports_what_it_cannot_answer(fits: dict[str, Fit]) -> None:
    free = fits["replay"].fitted
    costless = replace(free, theta=np.append(free.theta[:-1], 0.0))
    plan = forgetting.plan(replace(fits["replay"], fitted=costless), budget=0.03)["d"]
    assert "where replay stops paying is not identified" in plan.sentences[0]
    assert np.isnan(plan.stops_paying.high)
    given = forgetting.plan(fits, budget=0.2, replay=[0.0, 0.4])["d"]
    assert [c.extrapolated for c in given.frontier] == [False, True]
    assert given.stops_paying is None
    assert any("outside the measured range" in sentence for sentence in given.sentences)
    ample = forgetting.plan(fits, budget=5.0)["d"]
    assert ample.best.replay_fraction == 0
    assert any("replay does not pay" in sentence for sentence in ample.sentences)
    for wrong, message in (
        ({"target_loss": np.inf}, "target_loss: got inf; give a positive number"),
        ({"budget": 0.2, "replay": 1.0}, r"--replay\): got 1; a share from 0 to below 1"),
        ({"budget": 0.2, "max_steps": 500}, r"--max-steps\) is 500: 12 to 60 steps were measured"),
        ({"budget": 0.2, "replay": 0.1, "next_run": True}, "only plans runs without mitigations"),
    ):
        with pytest.raises(UsageError, match=message):
            forgetting.plan(fits, **wrong)
    with pytest.raises(UsageError, match="there is no law over the share of replay"):
        forgetting.plan({name: fits[name] for name in ("linear", "shifted_power")}, budget=0.2, replay=0.1)


def test_the_best_choice_is_marked_without_bands_too(fits: dict[str, Fit]) -> None:
    bare = replace(fits["replay"], draws=[], rivals=())
    for budget, share in ((5.0, 0.0), (0.1, 0.184)):
        plan = forgetting.plan(bare, budget=budget)["d"]
        assert plan.best.replay_fraction == pytest.approx(share, abs=1e-3)
        assert [row[-1].endswith("*") for row in plan.shown()[0].rows] == [c is plan.best for c in plan.frontier]
        assert plan.best in plan.frontier


def test_plans_without_replay_are_unchanged(fits: dict[str, Fit]) -> None:
    plain = {"d": {name: fits[name] for name in ("linear", "shifted_power")}}
    assert forgetting.plan({"d": fits}, budget=0.1, replay=0).to_dict() == forgetting.plan(plain, budget=0.1).to_dict()
    with pytest.raises(UsageError, match="this law has no intervals: 3 runs are too few"):  # the law of plain runs
        forgetting.plan({"d": fits}, budget=0.1, next_run=True)


def test_the_command_plans_and_predicts_with_replay(fits: dict[str, Fit], tmp_path: Path) -> None:
    save_fits({"d": fits}, tmp_path / "fits.json")
    run = CliRunner().invoke
    made = json.loads(run(app, ["plan", str(tmp_path / "fits.json"), "--budget", "0.15", "--json"]).stdout)
    assert made["best"]["replay_fraction"] == made["stops_paying"]["value"]
    assert made["held"] == "forgetting"
    text = run(app, ["plan", str(tmp_path / "fits.json"), "--budget", "0.15"]).stdout
    assert "replay stops paying at a share of" in text
    at = ["--rank", "16", "--steps", "44", "--replay", "0.05", "--replay", "0.5", "--json"]
    one, far = json.loads(run(app, ["predict", str(tmp_path / "fits.json"), *at]).stdout)
    assert one["forgetting_loss"]["value"] == pytest.approx(one["forgetting"]["value"] + FLOOR)
    assert (one["extrapolated"], far["extrapolated"]) == (False, True)


def test_the_report_shows_the_law_its_rows_by_share_and_what_plan_says(table, fits):
    table = table.assign(method="lora", forgetting_se=0.002, forgetting_loss_se=0.002, finetune_loss_se=0.002)
    rows = tidy(table)
    panel = panels(["d"], rows, group(rows, []), {"d": fits})[0]
    (section,) = sections_of(panel)
    assert [row.value for row in section.settings] == [
        "0",
        "0.01",
        "0.05",
        "0.2",
    ]
    fit, last = fits["replay"], table[(table["step"] == STEPS[-1]) & (table["mitigation"] == "replay")]
    at = {name: last[name].to_numpy() for name in ("trainable_params", "step", "replay_fraction")}
    made = fit.predict("forgetting", **at).value
    assert section.settings[2].forgetting == (number(last["forgetting"].mean()), number(made.mean()))
    every = rows_to_fit(table)[1]["replay"]
    every = every[every["replay_fraction"] == 0.05]
    at = {name: every[name].to_numpy() for name in ("trainable_params", "step", "replay_fraction")}
    residuals = every["finetune_loss"] - fit.predict("finetune_loss", **at).value
    assert section.settings[2].errors[1] == number(float(np.sqrt((residuals**2).mean())))
    assert list(section.sentences) == plan_mitigated(fit, budget=float(section.budget)).sentences
    assert "replay stops paying" in section.sentences[0]
    chart = next(chart for chart in charts(panel) if chart.kind == "replay")
    points = [trace for trace in chart.spec["data"] if trace["meta"]["role"] == "points"]
    assert sorted(x for trace in points for x in trace["x"]) == sorted(3 * list(SHARES))
    without = {name: one for name, one in fits.items() if name != "replay"}
    assert not sections_of(panels(["d"], rows, group(rows, []), {"d": without})[0])


def test_the_report_of_a_large_study_counts_measurements_though_its_charts_show_means(
    table: pd.DataFrame, fits: dict[str, Fit], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table.assign(method="lora", forgetting_se=0.002, forgetting_loss_se=0.002, finetune_loss_se=0.002)
    again = table.assign(run_id=table["run_id"] + "-again", forgetting=1.1 * table["forgetting"])
    rows = tidy(pd.concat([table, again], ignore_index=True))
    series = group(rows, [])
    (single,) = sections_of(panels(["d"], rows, series, {"d": fits})[0])
    monkeypatch.setattr(aggregate, "MOST_POINTS", 10)
    panel = panels(["d"], aggregate.drawn(rows, series)[0], series, {"d": fits}, rows)[0]
    assert len(panel.points) < len(panel.measured)
    assert sections_of(panel)[0].settings == single.settings
    chart = next(chart for chart in charts(panel) if chart.kind == "replay")
    assert "one standard error between runs" in chart.caption

"""Surfaces generated from the paper's Table 1 are recovered; the public shape of a fit."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from forgetting.analysis.fit import Fit, fit_from_published, fit_law, fit_study, load_fits, save_fits
from forgetting.analysis.laws import LAWS, PUBLISHED
from forgetting.analysis.plan.source import without_plan
from forgetting.errors import UsageError

RANKS = (8, 16, 32, 64, 128, 256)
PER_RANK = 2_498_560
STEPS = tuple(range(50, 261, 10))
NAMES = ("kalajdzievski2024/openorca", "kalajdzievski2024/news")


def closed_form(p: dict[str, float], P: float, N: float) -> tuple[float, float]:
    """Eq. 5 and 6, as printed, one number at a time: the slow twin of the law."""
    tuned = (p["a_ft"] / P) ** p["alpha_ft"] + (p["b_ft"] / N) ** p["beta_ft"]
    forgot = (p["a_f"] / P) ** p["alpha_f"] + (p["b_f"] / N) ** p["beta_f"]
    finetune = p["c_ft"] * tuned ** p["rho"] + p["s_ft"]
    return finetune, -p["c_fft"] * (p["c_ft"] * forgot ** p["rho"] + p["s_ft"]) + p["s_fft"]


def table(name: str, *, runs_each: int = 1, noise: float = 0.0, seed: int = 0, dataset: str = "d") -> pd.DataFrame:
    p = dict(PUBLISHED[name].parameters)
    rng = np.random.default_rng(seed)
    rows = []
    for rank in RANKS:
        for repeat in range(runs_each):
            offset = rng.normal(0, 1, 2) * noise
            for step in STEPS:
                losses = np.array(closed_form(p, PER_RANK * rank, step)) + offset + rng.normal(0, 1, 2) * noise / 4
                rows.append(
                    {
                        "dataset": dataset,
                        "method": "lora",
                        "rank": rank,
                        "seed": repeat,
                        "run_id": f"{dataset}-{rank}-{repeat}",
                        "status": "done",
                        "step": step,
                        "trainable_params": PER_RANK * rank,
                        "finetune_loss": losses[0],
                        "forgetting_loss": losses[1],
                    }
                )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("name", "rank", "step", "finetune", "forgetting"),
    [  # PAPER.md, worked values
        (NAMES[0], 8, 50, 0.7675, 0.7107),
        (NAMES[0], 8, 260, 0.6768, 0.8728),
        (NAMES[0], 256, 260, 0.6518, 0.9176),
        (NAMES[1], 8, 260, 2.0274, 0.9728),
        (NAMES[1], 256, 260, 1.9893, 1.0173),
    ],
)
def test_published_laws_give_the_papers_worked_values(name, rank, step, finetune, forgetting):
    fit = fit_from_published(name)
    at = {"trainable_params": PER_RANK * rank, "step": step}
    assert fit.predict("finetune_loss", **at).value == pytest.approx(finetune, abs=6e-5)
    assert fit.predict("forgetting_loss", **at).value == pytest.approx(forgetting, abs=6e-5)


@pytest.mark.parametrize("name", NAMES)
def test_table_1_surface_is_recovered(name):
    fit = fit_law("shifted_power", table(name), bootstrap=0)
    true = PUBLISHED[name].parameters
    # everywhere: between the measured points, and twice beyond them
    P, N = np.meshgrid(PER_RANK * np.geomspace(4, 512, 25), np.geomspace(25, 520, 25))
    for which, output in enumerate(("finetune_loss", "forgetting_loss")):
        exact = np.vectorize(lambda p, n, which=which: closed_form(dict(true), p, n)[which])(P, N)
        assert np.abs(fit.predict(output, trainable_params=P, step=N).value - exact).max() < 1e-8
    got = {k: e.value for k, e in fit.parameters.items()}
    for free in ("alpha_f", "alpha_ft", "beta_f", "beta_ft", "rho", "s_ft"):
        assert got[free] == pytest.approx(true[free], rel=1e-4), free
    limit = true["s_fft"] - true["c_fft"] * true["s_ft"]
    assert got["s_fft"] - got["c_fft"] * got["s_ft"] == pytest.approx(limit, rel=1e-4)
    assert got["c_ft"] == 1.0
    assert any("c_ft is fixed at 1" in note for note in fit.diagnostics["gauge"])
    assert fit.diagnostics["converged"]


@pytest.mark.parametrize("name", NAMES)
def test_the_undetermined_gauge_is_that_of_the_line(name):
    """Eq. 5-6 do not determine c_fft: it is Eq. 4's slope on the same rows, and within 3 % of the paper's."""
    data = table(name)
    both = fit_law("shifted_power", data, bootstrap=0).parameters
    line = fit_law("linear", data, bootstrap=0).parameters
    assert both["c_fft"].value == pytest.approx(line["c_fft"].value, rel=1e-12)
    assert both["c_fft"].value == pytest.approx(PUBLISHED[name].parameters["c_fft"], rel=0.03)


def test_scaling_c_fft_changes_no_prediction():
    """The degeneracy behind that choice, from the formula: c_fft, a_f, b_f and s_fft can move together."""
    law = LAWS["shifted_power"]
    p = dict(PUBLISHED[NAMES[0]].parameters)
    k = 1.7
    moved = p | {
        "c_fft": p["c_fft"] * k,
        "a_f": p["a_f"] * k ** (-1 / (p["rho"] * p["alpha_f"])),
        "b_f": p["b_f"] * k ** (-1 / (p["rho"] * p["beta_f"])),
        "s_fft": p["s_fft"] + (k - 1) * p["c_fft"] * p["s_ft"],
    }
    x = {"trainable_params": np.array([2e7, 6e8]), "step": np.array([50.0, 260.0])}
    one, two = (law.values(np.array([[q[n] for n in law.names]]), x) for q in (p, moved))
    assert np.abs(one - two).max() < 1e-12


@pytest.mark.full
def test_a_surface_is_the_same_where_the_line_is_fitted_before_it():
    data = table(NAMES[0], noise=0.004)
    (label, together), *_ = fit_study(data, bootstrap=40).items()
    by_itself = fit_law("shifted_power", data, label=label, bootstrap=40)
    assert together["shifted_power"].to_dict() == by_itself.to_dict()
    assert by_itself.parameters["c_fft"].low == together["linear"].parameters["c_fft"].low


def test_fit_study_fits_each_dataset_and_names_failed_runs():
    data = pd.concat([table(NAMES[0], noise=0.004, dataset="a"), table(NAMES[1], noise=0.004, dataset="b", seed=1)])
    broken = data.iloc[:3].assign(run_id="broken", status="failed", finetune_loss=np.nan)
    fits = fit_study(pd.concat([data, broken]), bootstrap=40)
    assert list(fits) == ["a", "b"]
    assert all(list(inner) == ["linear", "shifted_power"] for inner in fits.values())
    assert any("broken (failed)" in w for w in fits["a"]["linear"].warnings)
    fit = fits["a"]["shifted_power"]
    assert fit.n_runs == 6
    assert fit.n_points == 6 * len(STEPS)
    assert set(fit.r2) == {"finetune_loss", "forgetting_loss"}
    assert fit.r2["forgetting_loss"] > 0.98
    assert fit.diagnostics["params_per_rank"] == PER_RANK
    band = fit.predict("forgetting_loss", trainable_params=[PER_RANK * 24, PER_RANK * 300], step=100)
    assert (band.low < band.value).all()
    assert (band.value < band.high).all()
    assert list(band.extrapolated) == [False, True]


def test_r2_is_that_of_the_residuals():
    data = table(NAMES[0], noise=0.01)
    fit = fit_law("linear", data, bootstrap=0)
    slope, intercept = np.polyfit(data["finetune_loss"], data["forgetting_loss"], 1)
    assert fit.parameters["c_fft"].value == pytest.approx(-slope, rel=1e-10)
    assert fit.parameters["s_fft"].value == pytest.approx(intercept, rel=1e-10)
    assert fit.r2["forgetting_loss"] == pytest.approx(data[["finetune_loss", "forgetting_loss"]].corr().iloc[0, 1] ** 2)


def test_too_few_runs_give_no_interval_and_say_so():
    data = table(NAMES[0], noise=0.004)
    fit = fit_law("linear", data[data["rank"] <= 64])
    assert np.isnan(fit.parameters["c_fft"].low)
    assert np.isnan(fit.predict("forgetting_loss", finetune_loss=0.7).low)
    assert any("4 runs are too few" in w for w in fit.warnings)


def test_a_dataset_with_one_rank_gets_the_line_only_and_says_why():
    data = table(NAMES[0], noise=0.004, runs_each=2)
    fits = fit_study(data[data["rank"] == 8], bootstrap=0)
    assert list(fits["d"]) == ["linear"]
    assert any("shifted_power was not fitted: it needs at least 3" in w for w in fits["d"]["linear"].warnings)
    assert without_plan(fits["d"]) == [
        "shifted_power was not fitted: it needs at least 3 different values of trainable_params (such as ranks), but "
        "the table has 1",
        "a study gets one more rank by `forgetting study STUDY --rank RANK`",
    ]
    few = fit_study(data[data["step"] <= sorted(data["step"].unique())[1]], bootstrap=0)
    assert "measure more often in a new study" in without_plan(few["d"])[-1]
    assert without_plan(fit_study(data, bootstrap=0)["d"]) == []


def test_save_and_load_lose_nothing(tmp_path):
    fits = fit_study(table(NAMES[0], noise=0.004), bootstrap=20)
    save_fits(fits, tmp_path / "fits.json")
    again = load_fits(tmp_path / "fits.json")
    for law, fit in fits["d"].items():
        assert isinstance(again["d"][law], Fit)
        assert again["d"][law].to_dict() == fit.to_dict()
        assert again["d"][law].draws == fit.draws
    assert "NaN" not in (tmp_path / "fits.json").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fits.json"]
    published = fit_from_published(NAMES[0])
    assert np.isnan(Fit.from_dict(json.loads(json.dumps(published.to_dict()))).parameters["rho"].low)


@pytest.mark.parametrize(("content", "says"), [("{", "not JSON"), ("[]", "not a file of fits"), ("{}", "format")])
def test_load_fits_refuses_other_files(tmp_path, content, says):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UsageError, match=says):
        load_fits(tmp_path / "x.json")
    with pytest.raises(UsageError, match="no such file"):
        load_fits(tmp_path / "y.json")


@pytest.mark.full
def test_the_same_seed_gives_the_same_fit():
    data = table(NAMES[0], noise=0.004)
    one, two = (fit_law("shifted_power", data, bootstrap=10, seed=3) for _ in range(2))
    assert one.to_dict() == two.to_dict()

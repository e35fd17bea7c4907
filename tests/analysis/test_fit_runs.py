"""Which rows are one run, and which runs are resampled together (`--run`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from scipy import stats
from typer.testing import CliRunner

import forgetting
from forgetting.analysis.fit import fit_law
from forgetting.analysis.laws import FormulaLaw
from forgetting.cli import laws
from forgetting.errors import UsageError

STEPS = (10.0, 20.0, 30.0, 40.0, 50.0)
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(laws.fit_command)
LAW = "loss = a + b*x"


def shared(ranks: tuple[int, ...] = (4, 16, 64), seeds: int = 3, spread: float = 0.1) -> pd.DataFrame:
    """Runs of each rank with the same seeds, whose offsets all ranks share."""
    rng = np.random.default_rng(0)
    offset = rng.normal(0, spread, seeds)
    rows = [(rank, seed, step) for rank in ranks for seed in range(seeds) for step in STEPS]
    made = pd.DataFrame(rows, columns=["rank", "seed", "step"])
    made["x"] = (made["step"] - 30) / 10
    made["loss"] = 2 - 0.1 * made["x"] + offset[made["seed"]] + rng.normal(0, 0.001, len(made))
    return made


@pytest.mark.parametrize("run", ["run_id", ["rank", "seed"], ["seed", "rank"]])
def test_ranks_that_share_seeds_are_runs_of_their_own(run: str | list[str]) -> None:
    fit = forgetting.fit(shared(), LAW, run=run, bootstrap=40)
    assert fit.n_runs == fit.units == 9
    assert "45 points of 9 runs, least-squares" in str(fit)
    assert np.isfinite(fit.parameters["a"].low)


@pytest.mark.parametrize("named", [False, True])
def test_runs_of_one_seed_are_resampled_together(named: bool) -> None:
    """The offset of a seed is in all of its runs, so the error of the mean is that of the means of the seeds."""
    made = shared(seeds=8)
    if named:
        made["run_id"] = [f"r{rank}s{seed}" for rank, seed in zip(made["rank"], made["seed"], strict=True)]
    seeds, runs = (forgetting.fit(made, LAW, run=run, bootstrap=400) for run in ("seed", ["rank", "seed"]))
    assert (seeds.n_runs, seeds.units, runs.n_runs, runs.units) == (24, 8, 24, 24)
    assert "120 points of 24 runs in 8 groups (by seed)" in str(seeds)
    means = made.groupby("seed")["loss"].mean()
    textbook = stats.t.ppf(0.975, 7) * stats.sem(means)

    def half(fit: forgetting.Fit) -> float:
        return (fit.parameters["a"].high - fit.parameters["a"].low) / 2

    assert half(seeds) == pytest.approx(textbook, rel=0.2)
    assert half(runs) < 0.65 * textbook  # runs as if independent: about 1 / sqrt(3) of it
    again = forgetting.Fit.from_dict(seeds.to_dict())
    assert again.units == 8
    assert again.run_scales("loss") == seeds.run_scales("loss")


def test_few_groups_have_no_intervals() -> None:
    fit = forgetting.fit(shared(), LAW, run="seed")
    assert "45 points of 9 runs in 3 groups (by seed)" in str(fit)
    assert any(w.startswith("no intervals: 3 groups of runs (by seed) are too few") for w in fit.warnings)
    assert np.isnan(fit.parameters["a"].low)


def test_columns_that_do_not_name_a_run_are_refused_with_those_that_would() -> None:
    made = shared().rename(columns={"rank": "width"})
    want = r"rows 1 and 16 are the same run and step \(0\); they differ in width: .*\(--run seed --run width, "
    with pytest.raises(UsageError, match=want):
        forgetting.fit(made, LAW, run="seed")
    assert forgetting.fit(made, LAW, run=["seed", "width"], bootstrap=0).n_runs == 9
    want = r"no column 'width,seed' .*; for several columns, give --run width --run seed \(run=\['width', 'seed'\]\)"
    with pytest.raises(UsageError, match=want):
        forgetting.fit(made, LAW, run="width,seed")
    with pytest.raises(UsageError, match=r"no column 'sed' .*did you mean 'seed'"):
        forgetting.fit(made, LAW, run=["width", "sed"])
    twice = pd.concat([shared(), shared().head(1)])
    with pytest.raises(UsageError, match=r"rows 1 and 46 are the same run and step \(rank=4, seed=0\)$"):
        forgetting.fit(twice, LAW, run=["rank", "seed"])
    with pytest.raises(UsageError, match=r"rows 1 and 46 are the same run and step|rows 1 and 16"):
        forgetting.fit(twice, LAW, run="seed")


def test_a_command_names_runs_by_several_columns(tmp_path: Path) -> None:
    shared().to_csv(tmp_path / "t.csv", index=False)
    arguments = ["--law", LAW, "--run", "rank", "--run", "seed", "--bootstrap", "0"]
    result = CliRunner().invoke(app, [str(tmp_path / "t.csv"), *arguments])
    assert result.exit_code == 0
    assert "45 points of 9 runs," in result.stdout


@pytest.mark.parametrize("law", ["loss = a + b*step**-c", "loss = a + b*log(step)"])
@pytest.mark.parametrize(("unit", "first"), [(1.0, "1"), (0.01, "0.1")])
def test_rows_of_step_0_are_refused_with_the_option_that_leaves_them_out(law: str, unit: float, first: str) -> None:
    made = shared()
    made["step"] = (made["step"] - 10 * (made["step"] == 10)) * unit
    made.loc[made["step"] > 0, "step"] -= 10 * unit
    with pytest.raises(UsageError, match=rf"row 1.*step.* 0.*--from-step {first} \(from_step={first}\)"):
        forgetting.fit(made, law, bootstrap=0)
    assert forgetting.fit(made, law, from_step=float(first), bootstrap=0).n_points == 36


def test_without_later_steps_nothing_can_be_left_out() -> None:
    made = shared().assign(step=0.0)
    made["run_id"] = np.arange(len(made))
    with pytest.raises(UsageError, match=r"0\.0 where a positive number is needed$"):
        forgetting.fit(made.assign(trainable_params=1.0, finetune_loss=1.0, forgetting_loss=1.0))


def test_steps_from_another_column_tell_runs_and_copies() -> None:
    """Without them every row counted as a run, and intervals were several times too narrow."""
    law, made = FormulaLaw("loss = a + b*step", ["step"]), shared()
    renamed = made.rename(columns={"step": "iteration"})
    plain = fit_law(law, made, bootstrap=20)
    mapped = fit_law(law, renamed, columns={"step": "iteration"}, bootstrap=20)
    assert plain.n_runs == mapped.n_runs == 9
    assert plain.parameters == mapped.parameters
    named = renamed.assign(run_id=[f"r{rank}s{seed}" for rank, seed in zip(made["rank"], made["seed"], strict=True)])
    twice = pd.concat([named, named.iloc[:1].assign(loss=3.0)])
    with pytest.raises(UsageError, match="rows 1 and 46 are the same run and step"):
        fit_law(law, twice, columns={"step": "iteration"})


def test_one_step_written_in_two_ways_is_one_step() -> None:
    made = shared().astype({"step": str}).assign(run_id="r")
    made = made.iloc[: len(STEPS)]
    twice = pd.concat([made, made.iloc[:1].assign(step="10", loss=3.0)])
    with pytest.raises(UsageError, match="rows 1 and 6 are the same run and step"):
        fit_law(FormulaLaw(LAW, ["x"]), twice)

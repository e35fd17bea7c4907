"""The comparison at equal fine-tuning loss: closed forms, texts, errors. Coverage: test_compare_coverage.py."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import forgetting
from forgetting.analysis.compare import (
    Comparison,
    Contest,
    choose_axis,
    compare_tables,
    contest,
    read_source,
    study_tables,
)
from forgetting.analysis.compare.estimate import blocks, difference, prior_variance
from forgetting.analysis.compare.pareto import undominated
from forgetting.analysis.compare.path import path
from forgetting.analysis.compare.pooled import average
from forgetting.analysis.compare.source import AXES, Key, Run
from forgetting.analysis.compare.words import cost, reach, sentence
from forgetting.cli.app import app
from forgetting.config.arguments import from_records
from forgetting.errors import UsageError
from forgetting.measuring.estimate import holm
from simulated import study

LOSSES = np.linspace(2.0, 1.0, 9)


def rows_of(label: str, losses: Any, forgot: Any, seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    """One run."""
    run = f"{label}-{more.get('rank')}-{more.get('mitigation', '')}-s{seed}"
    about = {"dataset": "d", "label": label, "mitigation": "", "rank": None, "seed": seed, "run_id": run} | more
    return [
        about
        | {
            "status": about.get("status", "done"),
            "step": 10 * (i + 1),
            "finetune_loss": float(x),
            "forgetting": float(y),
        }
        | {"train_seconds": 2.0 * (i + 1)}
        for i, (x, y) in enumerate(zip(losses, forgot, strict=True))
    ]


def line(x: Any) -> Any:
    return 3 - 1.3 * np.asarray(x)


def contest_of(rows: list[dict[str, Any]], reference: str = "lora", confidence: float = 0.95) -> Contest:
    table = from_records(rows)
    return contest(read_source(table, "d", choose_axis(table, None, None)), reference, confidence)


@pytest.mark.parametrize("rank", [8, None])
def test_two_exact_parallel_lines_are_0_1_apart(rank):
    rows = [
        row
        for seed in (0, 1, 2)
        for r in (4, 8, 16)
        for row in rows_of("lora", LOSSES + 0.01 * r, line(LOSSES + 0.01 * r), seed, rank=r)
    ]
    rows += [
        row for seed in (0, 1, 2) for row in rows_of("other", LOSSES - 0.3, line(LOSSES - 0.3) - 0.1, seed, rank=rank)
    ]
    one = contest_of(rows).contenders[0]
    for e in (one.saving, one.over_ranks):
        assert e.value == pytest.approx(0.1, abs=1e-9)
        assert e.low == pytest.approx(0.1, abs=1e-9)
        assert e.high == pytest.approx(0.1, abs=1e-9)
    assert one.verdict == "saves"
    assert sentence(one, contest_of(rows)) == "saves 0.100 [0.100, 0.100] nats at equal fine-tuning loss"


def test_a_truncated_copy_of_the_reference_saves_nothing():
    forgot = 0.8 / LOSSES**2  # any curve
    rows = []
    for seed in (0, 1, 2):
        shifted = forgot + 0.05 * seed
        rows += rows_of("lora", LOSSES, shifted, seed, rank=8)
        rows += rows_of("stopped", LOSSES[:5], shifted[:5], seed, rank=8)
    found = contest_of(rows)
    one = found.contenders[0]
    assert one.saving.value == pytest.approx(0, abs=1e-9)
    assert one.final.value == pytest.approx(0, abs=1e-9)
    assert one.verdict == "no evidence"
    assert "no evidence that it beats early stopping" in sentence(one, found)
    assert reach(one, found) == "never reaches the reference's best fine-tuning loss, 1.000: 1.500 at best"


def test_pairing_by_seed_removes_what_a_seed_does_to_both():
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(4):
        shift = rng.normal(0, 0.5)  # due to the order of the data: large, and the same for both
        rows += rows_of("lora", LOSSES, line(LOSSES) + shift, seed, rank=8)
        rows += rows_of("other", LOSSES, line(LOSSES) + shift - 0.05 + rng.normal(0, 0.002), seed, rank=8)
    e = contest_of(rows).contenders[0].saving
    assert e.scheme == "paired"  # two curves are too few to learn the spread from
    assert e.freedom == 3
    assert e.high - e.low < 0.02
    moved = [row | ({"seed": row["seed"] + 10} if row["label"] == "other" else {}) for row in rows]
    e = contest_of(moved).contenders[0].saving
    assert e.scheme == "unpaired"
    assert e.high - e.low > 0.5


def test_the_interval_is_students_t():
    d = {"0": 0.3, "1": 0.1, "2": 0.2}
    e = difference(d, dict.fromkeys(d, 0.0), 0.95)
    assert e.value == pytest.approx(0.2)
    assert e.high - e.value == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert e.p == pytest.approx(0.0741799, rel=1e-5)  # R: t.test(c(.3, .1, .2))
    e = difference({"0": 0.3, "1": 0.1, "2": 0.2}, {"3": 0.0, "4": 0.3, "5": 0.1, "6": 0.1}, 0.95)
    welch = math.sqrt(0.01 / 3 + np.var([0, 0.3, 0.1, 0.1], ddof=1) / 4)
    assert e.value == pytest.approx(0.075)
    assert (e.high - e.value) / welch == pytest.approx(2.5826, abs=2e-3)  # t of 4.9 degrees


def test_with_equal_variances_the_spread_is_that_of_the_two_way_analysis_of_variance():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(7, 1)) + rng.normal(size=4) + 0.01 * rng.normal(size=(7, 4))
    residual = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    _, prior = prior_variance((residual**2).sum(1) / (3 * 6 / 7), 3 * 6 / 7)
    assert prior == math.inf
    e = blocks(values, 2, 5, 0.95)
    assert e is not None
    assert e.value == pytest.approx(values[2].mean() - values[5].mean())
    assert e.freedom == 18
    mean_square = (residual**2).sum() / 18
    assert e.high - e.value == pytest.approx(2.100922 * math.sqrt(2 * mean_square / 4), rel=1e-6)


def test_the_common_variance_and_its_degrees_of_freedom_are_recovered():
    rng = np.random.default_rng(0)
    truth = 0.04 * 10 / rng.chisquare(10, 4000)  # scaled inverse chi-square with 10 degrees of freedom
    common, prior = prior_variance(truth * rng.chisquare(2, 4000) / 2, 2.0)
    assert common == pytest.approx(0.04, rel=0.1)
    assert prior == pytest.approx(10, rel=0.3)


def test_a_curve_with_more_scatter_than_the_others_keeps_its_own_variance():
    values = np.random.default_rng(0).normal(size=(8, 3))
    values[4] *= 30
    assert blocks(values, 0, 4, 0.95) is None
    assert blocks(values, 0, 1, 0.95) is not None
    assert blocks(values[:4], 0, 1, 0.95) is None  # too few curves
    assert blocks(np.zeros((8, 3)), 0, 1, 0.95) is None  # copies


def test_variance_is_pooled_over_contenders_with_few_seeds():
    twins = {f"t{i}": {"rank": 16} for i in range(6)}

    def freedom(contenders: dict[str, Any]) -> tuple[float, str]:
        table = study(np.random.default_rng(1), contenders=contenders)
        found = contest(read_source(table, "d", AXES["finetune_loss"]), "lora").contenders
        e = next(c.saving for c in found if c.key.label == "t0")
        return e.freedom, e.scheme

    assert freedom({"t0": twins["t0"]} | {"f": {"seeds": (7, 8, 9)}}) != freedom(twins)
    assert freedom(twins)[0] > 4
    assert freedom(twins)[1] == "paired, spread from all curves"


def test_one_seed_gives_no_interval_and_says_so():
    rows = rows_of("lora", LOSSES, line(LOSSES), rank=8) + rows_of("other", LOSSES, line(LOSSES) - 0.2, rank=8)
    found = contest_of(rows)
    one = found.contenders[0]
    assert one.saving.value == pytest.approx(0.2)
    assert math.isnan(one.saving.low)
    assert one.verdict == "no interval"
    assert "measured 0.200 nats below the reference" in sentence(one, found)
    assert "run 3 or more" in sentence(one, found)
    assert any("1 of 1 have no interval" in note for note in found.notes)


def test_never_reaches_and_beyond():
    reference = rows_of("lora", LOSSES, line(LOSSES), rank=8)
    found = contest_of(reference + rows_of("weak", LOSSES + 2, line(LOSSES + 2), rank=8))
    assert found.contenders[0].verdict == "never reaches"
    assert sentence(found.contenders[0], found).startswith("never reaches the reference's fine-tuning loss: 3.0")
    assert found.contenders[0].price is None
    found = contest_of(reference + rows_of("strong", LOSSES - 1.5, line(LOSSES - 1.5), rank=8))
    assert found.contenders[0].verdict == "beyond the reference"
    assert "the reference never reaches its fine-tuning loss" in sentence(found.contenders[0], found)


def test_two_texts_of_one_file_name_stay_two_curves_with_short_names():
    reference = rows_of("lora", LOSSES, line(LOSSES), rank=8)
    mitigations = [f"replay text=/home/{name}/general.jsonl fraction=0.1" for name in "ab"]
    saved = [rows_of("lora", LOSSES, line(LOSSES) - 0.1, rank=8, mitigation=one) for one in mitigations]
    found = contest_of([*reference, *saved[0], *saved[1]])
    assert [one.key.mitigation for one in found.contenders] == mitigations
    names = [f"lora rank 8 + replay text={name}/general.jsonl fraction=0.1" for name in "ab"]
    assert [str(one.key) for one in found.contenders] == names
    alone = contest_of([*reference, *saved[0]])
    assert str(alone.contenders[0].key) == "lora rank 8 + replay text=general.jsonl fraction=0.1"


def test_rows_after_the_lowest_loss_are_not_on_the_curve():
    steps = np.arange(3.0)
    losses, forgot = np.array([2.0, 1.0, 1.5]), np.array([0.1, 0.5, 9.0])
    run = Run(Key("a"), "0", "a", losses, forgot, step=steps, seconds=steps, alpha=np.ones(3), params=1.0, memory=1.0)
    made = path(run)
    assert made.x.tolist() == [1.0, 2.0]
    assert made.mean(1.0, 2.0) == pytest.approx(0.3)
    assert made.cost(1.5) == (0.5, 0.5)
    assert math.isnan(made.mean(0.9, 1.0))


def test_a_coarser_grid_costs_a_thousandth_of_a_nat_on_a_bent_curve():
    quiet = dict.fromkeys(("offset", "jitter", "loss", "order"), 0.0)
    for pace in (0.5, 1.5, 2.0, 3.0):
        args = {"noise": quiet, "between_ranks": 0, "pace": pace, "contenders": {"twin": {"rank": 64}}}
        table = study(np.random.default_rng(0), **args)
        one = contest(read_source(table, "d", AXES["finetune_loss"]), "lora").contenders[0]
        assert abs(one.saving.value) < 0.0012  # chords of a convex curve, longer for the faster run


def test_price_is_the_ratio_of_steps_to_the_best_common_loss():
    slow = np.linspace(2.0, 1.0, 17)  # half as fast
    rows = rows_of("lora", LOSSES, line(LOSSES), rank=8) + rows_of("slow", slow, line(slow), rank=8)
    one = contest_of(rows).contenders[0]
    p = one.price
    assert p is not None
    assert (p.loss, p.steps, p.reference_steps) == (1.0, 170.0, 90.0)
    assert p.seconds / p.reference_seconds == pytest.approx(170 / 90)
    said = "reaches 1.000 in 170 steps (reference: 90), in 1.89 times the reference's time"
    for more, words in ((-1.2, "1 MiB less memory"), (1200.0, "1,200 MiB more memory"), (0.3, "as much memory")):
        priced = replace(one, price=replace(p, memory=100.0 + more, reference_memory=100.0))
        assert cost(priced) == f"{said} and with {words}"


def test_the_parabola_is_chosen_where_the_relation_is_bent_and_the_line_where_it_is_not():
    def forms(bend: float) -> list[str]:
        quiet = {"offset": 0.0, "jitter": 0.005, "loss": 0.002, "order": 0.0}
        args = {"contenders": {"other": {}}, "between_ranks": 0.01, "bend": bend, "noise": quiet}
        found = []
        for i in range(10):
            table = study(np.random.default_rng(i), **args)
            pooled = contest(read_source(table, "d", AXES["finetune_loss"]), "lora").pooled
            assert pooled is not None
            found.append(pooled.form)
        return found

    assert forms(1.6).count("parabola") == 10
    assert forms(1.0).count("line") >= 8


def test_a_reference_with_a_curve_for_each_rank_holds_equal_ranks_against_each_other():
    rows = []
    for seed in (0, 1):
        for rank, shift in ((8, 0.0), (16, 0.5), (32, 1.0)):
            rows += rows_of("lora", LOSSES, line(LOSSES) + shift + 0.01 * seed, seed, rank=rank)
        rows += rows_of("same", LOSSES, line(LOSSES) + 1.0 + 0.01 * seed, seed, rank=32)
        rows += rows_of("free", LOSSES, line(LOSSES) + 1.0 + 0.01 * seed, seed)
    found = {c.key.label: c for c in contest_of(rows).contenders}
    assert found["same"].against == "lora rank 32"
    assert found["same"].saving.value == pytest.approx(0, abs=1e-9)
    assert found["free"].against == "all 3 curves of lora"
    assert found["free"].saving.value == pytest.approx(-0.5, abs=1e-6)
    assert found["free"].verdict == "no evidence"  # the reference's own ranks differ as much
    assert found["same"].over_ranks.value == pytest.approx(-0.5, abs=1e-6)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm([math.nan, 0.04]) == [pytest.approx(math.nan, nan_ok=True), 0.04]
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_p_is_corrected_for_the_number_of_contenders():
    rows = []
    for seed in range(3):
        rows += rows_of("lora", LOSSES, line(LOSSES), seed, rank=8)
        for i in range(10):
            saved = (0.02 if i == 0 else 0.0) + 0.004 * (seed - 1)  # t = 8.7 with 2 degrees of freedom: p = 0.013
            rows += rows_of(f"m{i}", LOSSES, line(LOSSES) - saved, seed, rank=8)
    found = contest_of(rows)
    best = found.contenders[0]
    assert best.key.label == "m0"
    assert best.saving.low > 0
    assert best.adjusted_p == pytest.approx(10 * best.saving.p)
    assert best.verdict == "not after correction"
    assert "after correction for 10 contenders" in sentence(best, found)


def test_pareto_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in rng.integers(0, 12, (60, 2))]
    slow = {
        i for i, (x, y) in enumerate(points) if not any((a <= x and b <= y and (a < x or b < y)) for a, b in points)
    }
    assert undominated(points) == slow


def test_the_frontier_counts_seeds():
    rows = []
    for seed in (0, 1, 2):
        rows += rows_of("lora", LOSSES, line(LOSSES), seed, rank=8)
        rows += rows_of("other", LOSSES, line(LOSSES) + (0.01 if seed == 2 else -0.1), seed, rank=8)
    points = contest_of(rows).points
    assert {p.key.label for p in points if p.front} == {"other"}
    assert {round(p.seeds, 3) for p in points if p.key.label == "other"} == {0.667}
    assert {round(p.seeds, 3) for p in points if p.key.label == "lora"} == {0.333}


def test_a_point_is_the_mean_over_seeds_at_one_step():
    rows = rows_of("lora", LOSSES, line(LOSSES), rank=8)
    rows += rows_of("other", LOSSES, line(LOSSES) - 0.1, 0, rank=8)
    rows += rows_of("other", LOSSES, line(LOSSES) - 0.1, 1, rank=8)[2:]  # steps 30 to 90
    mine = [p for p in contest_of(rows).points if p.key.label == "other"]
    assert [p.step for p in mine] == [10 * (i + 1) for i in range(2, 9)]
    assert [p.loss for p in mine] == pytest.approx(LOSSES[2:])
    assert {(p.runs, p.loss_se, p.seeds) for p in mine} == {(2, 0.0, 1.0)}


def test_interpolated_weights_are_a_curve_of_their_own():
    rows = []
    for seed in (0, 1):
        rows += rows_of("lora", LOSSES, line(LOSSES), seed, rank=8)
        last = rows[-1]
        for alpha in (0.0, 0.3, 0.6):
            x = 2.0 - alpha
            rows.append(last | {"alpha": alpha, "finetune_loss": x, "forgetting": float(line(x)) - 0.2 * (1 - alpha)})
    found = contest_of(rows).contenders
    assert [str(c.key) for c in found] == ["lora rank 8 + interpolation"]
    one = found[0]
    assert (one.low, one.high) == (1.0, 1.7)
    assert one.saving.value > 0.05
    assert one.final.value == pytest.approx(0, abs=1e-9)
    assert one.price is not None
    assert one.price.steps == 90  # the whole training, whatever alpha


def test_accuracy_is_better_when_higher():
    rows = [
        {"method": "lora", "rank": r, "run_id": f"lora-{r}", "test_accuracy": 0.4 + r / 100, "forgetting": 0.2 + r / 50}
        for r in (4, 8, 16)
    ]
    rows += [{"method": "other", "run_id": "o", "test_accuracy": 0.5, "forgetting": 0.2}]
    rows += [{"method": "weak", "run_id": "w", "test_accuracy": 0.1, "forgetting": 0.2}]
    found = contest_of(rows)
    other, weak = found.contenders
    assert other.saving.value == pytest.approx(0.2)  # at 0.5 the line through the reference says 0.4
    assert math.isnan(other.saving.low)
    assert "an interval needs 3" in sentence(other, found)
    assert weak.verdict == "never reaches"
    assert "0.100 at best" in sentence(weak, found)
    assert {p.key.label for p in found.points if p.front} == {"lora", "other"}


def test_peft_results_need_no_options(tmp_path):
    for name, kind, accuracy, forgot in (
        ("lora--r8", "LORA", 0.40, 0.31),
        ("lora--r16", "LORA", 0.50, 0.40),
        ("lora--r32", "LORA", 0.55, 0.44),
        ("lora--r32-rs", "LORA", 0.56, 0.46),
        ("boft", "BOFT", 0.45, 0.10),
    ):
        rank = (
            {"r": int(name.split("r")[-1].split("-")[0])} if kind == "LORA" and not name.endswith("rs") else {"r": 32}
        )
        config = {"peft_type": kind} | (rank if kind == "LORA" else {})
        metrics = [{"step": 5, "train loss": 1.0, "test accuracy": accuracy, "forgetting": forgot}]
        run = {"experiment_name": name, "peft_config": config, "train_config": {"seed": 0}}
        run["created_at"] = "2026-08-01T10:00:00+00:00"
        train = {"status": "success", "num_trainable_params": 10, "metrics": metrics}
        (tmp_path / f"{name}.json").write_text(json.dumps({"run_info": run, "train_info": train}))
    made = forgetting.compare(tmp_path, "lora")
    found = next(iter(made.contests.values()))
    assert [c.key.label for c in found.contenders] == ["boft"]
    assert found.contenders[0].saving.value > 0.2
    assert len({p.key for p in found.points}) == 5  # two runs of rank 32 are not replicates of each other
    assert made.to_dict()["datasets"][found.dataset]["better"] == "higher"


def test_two_runs_of_one_seed_are_not_replicates():
    rows = rows_of("lora", LOSSES, line(LOSSES), rank=8)
    rows += [row | {"run_id": "again"} for row in rows_of("other", LOSSES, line(LOSSES), rank=8)]
    rows += rows_of("other", LOSSES, line(LOSSES), rank=8)
    assert sorted(str(c.key) for c in contest_of(rows).contenders) == [
        "other rank 8 (again)",
        "other rank 8 (other-8--s0)",
    ]


def test_curves_with_the_same_label_are_named_by_the_options_that_differ():
    table = pd.DataFrame(
        rows_of("lora", LOSSES, line(LOSSES), rank=8) + rows_of("lora", LOSSES, line(LOSSES), 1, rank=8)
    )
    ids = list(dict.fromkeys(table["run_id"]))
    runs = [
        {"run_id": run, "dataset": "d", "label": "lora", "method": {"name": "lora", "rank": 8, "alpha": alpha}}
        for run, alpha in zip(ids, (16, 32), strict=True)
    ]
    assert set(study_tables(table, runs)["d"]["variant"]) == {"alpha=16", "alpha=32"}
    runs[1]["method"] = dict(runs[0]["method"])
    assert set(study_tables(table, runs)["d"]["variant"]) == {""}


def test_failed_runs_are_left_out_by_name():
    rows = rows_of("lora", LOSSES, line(LOSSES), rank=8) + rows_of("other", LOSSES, line(LOSSES), rank=8)
    rows += rows_of("broken", LOSSES, line(LOSSES), rank=8, status="failed")
    found = contest_of(rows)
    assert [c.key.label for c in found.contenders] == ["other"]
    assert "left out, failed: broken-8--s0" in found.notes


GOOD = rows_of("lora", LOSSES, line(LOSSES), rank=8) + rows_of("other", LOSSES, line(LOSSES), rank=8)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (GOOD, {"reference": "lroa"}, "no runs of 'lroa' to compare others with; did you mean 'lora'?"),
        (GOOD, {"reference": None}, "give a label, or COLUMN=VALUE; choices: lora, other"),
        (GOOD, {"confidence": 95}, "confidence: got 95; give a number between 0 and 1"),
        (GOOD, {"by": "finetune_los"}, "no column 'finetune_los' to hold equal; did you mean 'finetune_loss'?"),
        (GOOD, {"by": "train_seconds"}, "not known whether higher or lower train_seconds is better"),
        (GOOD, {"direction": "higher"}, "for finetune_loss, lower is better"),
        (GOOD, {"direction": "up"}, "direction 'up'; choices: lower, higher"),
        (GOOD[:9], {}, "only plain runs of 'lora'; a comparison needs another label or a mitigation"),
        ([r | {"mitigation": "kl"} for r in GOOD], {}, "no plain run of 'lora'"),
        ([r | {"status": "failed"} for r in GOOD], {}, "has no finished run to compare (left out, failed: lora-8--s0"),
        ([*GOOD[1:], GOOD[0] | {"forgetting": math.inf}], {}, "row 18 (run lora-8--s0), column 'forgetting': inf"),
        ([*GOOD, GOOD[0]], {}, "run lora-8--s0 has several measurements at one step"),
        ([{k: v for k, v in r.items() if k != "forgetting"} for r in GOOD], {}, "has no column 'forgetting_loss'"),
        ([{k: v for k, v in r.items() if k != "label"} for r in GOOD], {}, "no column 'label' or 'method'"),
        ([{k: v for k, v in r.items() if k != "finetune_loss"} for r in GOOD], {}, "no column 'finetune_loss'"),
    ],
)
def test_a_mistake_gets_one_clear_line(rows, options, words):
    with pytest.raises(UsageError) as caught:
        compare_tables({"d": from_records(rows)}, **({"reference": "lora"} | options))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def made() -> tuple[Any, Comparison]:
    table = study(np.random.default_rng(0), contenders={"other": {"rank": 16, "saving": 0.4}, "free": {}})
    return table, compare_tables({"d": table}, "lora")


def test_the_table_never_shows_a_p_value_of_0():
    rows = []
    for seed in range(3):
        rows += rows_of("lora", LOSSES, line(LOSSES), seed, rank=8)
        rows += rows_of("other", LOSSES, line(LOSSES) - 0.5 - 0.001 * seed, seed, rank=8)
    found = contest_of(rows)
    assert 0 < found.contenders[0].adjusted_p < 1e-5
    text = str(forgetting.compare(pd.DataFrame(rows), reference="lora"))
    assert re.search(r"other rank 8 .* < 0\.001 ", text)


def test_the_text_names_savings_and_whether_the_laws_hold(made):
    text = str(made[1])
    assert re.search(r"other rank 16: saves 0\.[34]\d\d \[0\.\d+, 0\.\d+\]", text)
    assert "Pareto frontier:" in text
    assert "0.1851 (Eq. 4) and 0.8714 (Eq. 6)" in text


def test_appendix_b_is_r2_and_mean_error_over_the_other_methods(made):
    table, comparison = made
    of = {label: np.array([s == label for s in table["label"]]) for label in ("lora", "free")}
    of_lora = {name: np.array(table[name], dtype=object)[of["lora"]] for name in table}
    fitted = forgetting.fit(of_lora, "linear", bootstrap=0)
    x, y = (np.array(table[name])[of["free"]] for name in ("finetune_loss", "forgetting_loss"))
    error = y - fitted.predict("forgetting_loss", finetune_loss=x).value
    rows = comparison.beyond["d"]
    row = next(r for r in rows if r.label == "free" and r.law == "linear")
    assert row.bias == pytest.approx(error.mean())
    assert row.r2 == pytest.approx(1 - np.sum(error**2) / np.sum((y - y.mean()) ** 2))
    assert (row.rows, row.runs) == (36, 3)
    assert next(r for r in rows if r.label == "all together" and r.law == "shifted_power").rows == 72


def test_the_command_prints_json(made, tmp_path: Path):
    kept = {name: cells for name, cells in made[0].items() if name != "trainable_params"}
    file = tmp_path / "runs.jsonl"
    rows = zip(*kept.values(), strict=True)
    file.write_text("".join(json.dumps(dict(zip(kept, row, strict=True))) + "\n" for row in rows))
    read = CliRunner().invoke(app, ["compare", str(file), "--reference", "lora", "--json", "--confidence", "0.9"])
    assert read.exit_code == 0
    content = json.loads(read.stdout)["datasets"]["d"]
    first = content["contenders"][0]
    assert (first["name"], first["verdict"]) == ("other rank 16", "saves")
    wide = made[1].contests["d"].contenders[0].saving
    assert wide.low < first["saving"]["low"] < first["saving"]["value"] < first["saving"]["high"] < wide.high
    result = CliRunner().invoke(app, ["compare", str(file), "--reference", "lora"])
    assert "other rank 16: saves" in result.stdout


def test_mean_of_a_polynomial():
    c = np.array([2.0, -1.0, 0.5])
    assert average(c, 1.0, 3.0) == pytest.approx((2 / 3 * 26 - 1 / 2 * 8 + 0.5 * 2) / 2)
    assert average(c, 2.0, 2.0) == pytest.approx(np.polyval(c, 2.0))

"""Statistics of paired items: against closed forms, scipy, and simulation."""

from __future__ import annotations

import doctest
import functools
import math
import subprocess
import sys
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from forgetting.capabilities import explain, predictors, refusals, rendering, replies, results
from forgetting.capabilities import transitions as t
from forgetting.capabilities.relearn import Relearned
from forgetting.errors import UsageError
from forgetting.measuring.estimate import holm


def counted(kept: int, lost: int, gained: int, wrong: int) -> t.Paired:
    before = np.r_[np.ones(kept + lost), np.zeros(gained + wrong)]
    after = np.r_[np.ones(kept), np.zeros(lost), np.ones(gained), np.zeros(wrong)]
    return t.Paired.of(before, after)


@pytest.mark.parametrize("module", [t, predictors, refusals, replies, explain, rendering])
def test_doctests(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_the_worked_example() -> None:
    """n = 500, 45 lost, 20 gained."""
    change = t.difference(counted(300, 45, 20, 135))
    assert change.value == pytest.approx(-0.050, abs=1e-12)
    assert change.se == pytest.approx(0.01598, abs=5e-6)
    # closed form: the variance of d in {-1, 0, 1}, with n - 1
    assert change.se == pytest.approx(math.sqrt((65 / 500 - 0.05**2) * 500 / 499 / 500), rel=1e-12)


def test_an_unpaired_se_would_hide_what_the_pairs_show() -> None:
    pairs = counted(300, 45, 20, 135)
    unpaired = math.sqrt(pairs.before.var(ddof=1) / 500 + pairs.after.var(ddof=1) / 500)
    assert t.difference(pairs).se < 0.6 * unpaired


def test_transitions_add_up_and_wrong_answers_that_changed_are_told_apart() -> None:
    before, after = [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]
    found = t.transitions(t.Paired.of(before, after, [True, False, False, False, True]))
    assert (found.kept, found.lost, found.gained, found.changed, found.unchanged) == (1, 1, 1, 1, 1)
    assert found.n == 5


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (3, 3), (45, 20), (7, 31), (600, 7), (2000, 1900)])
def test_mcnemar_is_the_exact_test_in_whole_numbers(lost: int, gained: int) -> None:
    """Twice the smaller tail of a fair coin, at most 1: whole numbers over a power of two."""
    n, tail = lost + gained, min(lost, gained)
    expected = min(1.0, float(Fraction(2 * sum(math.comb(n, i) for i in range(tail + 1)), 2**n)))
    assert t.mcnemar(lost, gained) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("count", "of"), [(0, 50), (8, 32), (16, 32), (50, 50), (1, 1), (1, 4000)])
def test_wilson_is_the_closed_form(count: int, of: int) -> None:
    """Wilson 1927: the shares p at which (count/of - p)^2 = z^2 p (1 - p) / of."""
    z, found = NormalDist().inv_cdf(0.975), t.wilson(count, of)
    p, shrink = count / of, 1 + z**2 / of
    middle, half = (p + z**2 / (2 * of)) / shrink, z / shrink * math.sqrt(p * (1 - p) / of + z**2 / (4 * of**2))
    assert (found.value, found.low, found.high) == pytest.approx((p, middle - half, middle + half), abs=1e-12)
    assert (found.low == 0, found.high == 1) == (count == 0, count == of)
    assert math.isnan(t.wilson(0, 0).low)


def test_the_paired_interval_covers_the_truth() -> None:
    """Simulated items with known chances of being lost and gained: the 95 % intervals hold the true change."""
    rng, lost, gained, n, covered = np.random.default_rng(1), 0.09, 0.04, 200, 0
    for _ in range(1500):
        d = rng.choice([-1.0, 1.0, 0.0], p=[lost, gained, 1 - lost - gained], size=n)
        pairs = t.Paired.of((d < 0) | ((d == 0) & (rng.random(n) < 0.5)), np.zeros(n))
        pairs = t.Paired.of(
            pairs.before, pairs.before + np.where(pairs.before == 1, np.minimum(d, 0), np.maximum(d, 0))
        )
        low, high = t.difference(pairs).interval()
        covered += low <= gained - lost <= high
    assert 0.935 <= covered / 1500 <= 0.965


def test_clustered_intervals_cover_if_whole_passages_are_lost_and_plain_ones_do_not() -> None:
    rng, covered = np.random.default_rng(2), {"clustered": 0, "plain": 0}
    for _ in range(400):
        lost = np.repeat(rng.random(60) < 0.2, 5)  # all five items of a passage together
        for name, clusters in (("clustered", np.repeat(np.arange(60), 5)), ("plain", None)):
            low, high = t.difference(t.Paired.of(np.ones(300), 1.0 - lost, clusters=clusters)).interval()
            covered[name] += low <= -0.2 <= high
    assert covered["clustered"] / 400 > 0.91
    assert covered["plain"] / 400 < 0.75


def test_the_bootstrap_agrees_with_the_closed_form() -> None:
    rng = np.random.default_rng(3)
    values, clusters = rng.normal(size=(400, 1)), np.repeat(np.arange(100), 4)
    low, high = t.bootstrap(values, clusters, lambda m: m[:, 0], resamples=4000)
    from forgetting.measuring.estimate import clustered_mean

    se = clustered_mean(values[:, 0], clusters).se
    assert (high - low) / (2 * 1.96 * se) == pytest.approx(1, abs=0.06)
    assert (low, high) == t.bootstrap(values, clusters, lambda m: m[:, 0], resamples=4000)


@pytest.mark.full
def test_two_guessing_models_forget_nothing_after_correction_for_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models that guess among 4 options: a fifth of the items change, and none of it is forgetting."""
    monkeypatch.setattr(t, "bootstrap", functools.partial(t.bootstrap, resamples=100))
    rng, raw, net = np.random.default_rng(4), [], []
    for _ in range(40):
        before, after = rng.random(2000) < 0.25, rng.random(2000) < 0.25
        forgot, gained = t.corrected(t.Paired.of(before, after, options=np.full(2000, 4)), seed=1)
        assert forgot.chance == pytest.approx((1 - before.mean()) * (1 - after.mean()) / 3)
        assert forgot.low <= forgot.value <= forgot.high
        raw.append(forgot.raw)
        net.append(forgot.value - gained.value)
    assert np.mean(raw) == pytest.approx(0.1875, abs=0.01)
    assert abs(np.mean(net)) < 0.01


def test_known_items_that_are_lost_count_in_full() -> None:
    pairs = counted(60, 40, 0, 0)
    free, _ = t.corrected(pairs)
    assert (free.raw, free.chance, free.value) == (0.4, 0.0, 0.4)


def test_holm_keeps_false_alarms_below_the_level() -> None:
    rng = np.random.default_rng(5)
    alarms = sum(min(holm(list(rng.random(20)))) < 0.05 for _ in range(2000))
    assert alarms / 2000 < 0.065
    assert sum(min(rng.random(20)) < 0.05 for _ in range(2000)) / 2000 > 0.5


def test_wrong_input_is_named() -> None:
    with pytest.raises(UsageError, match="different lengths"):
        t.Paired.of([1, 0], [1])
    with pytest.raises(UsageError, match="no item"):
        t.Paired.of([], [])
    with pytest.raises(UsageError, match="outside 0 to 1"):
        t.Paired.of([2.0], [1.0])
    with pytest.raises(UsageError, match="neither right nor wrong"):
        t.transitions(t.Paired.of([0.5], [1.0]))
    with pytest.raises(UsageError, match="only one option"):
        t.corrected(t.Paired.of([1], [1], options=[1]))


def test_spearman_is_scipys_and_steps_of_one_run_do_not_count_as_runs() -> None:
    rng = np.random.default_rng(6)
    x = rng.integers(0, 9, 60).astype(float)
    y = x + rng.normal(size=60) * 3
    found = predictors.correlate(list(x), list(y), [i // 6 for i in range(60)])
    assert found.r == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found.low < found.r < found.high
    assert math.isnan(predictors.correlate([1, 2, 3], [1, 2, 4], ["a", "a", "b"]).low)
    assert math.isnan(predictors.correlate([1, 1, 1], [1, 2, 4], ["a", "b", "c"]).r)


def test_the_interval_of_a_correlation_is_that_of_whole_runs_drawn_one_by_one() -> None:
    """The plain loop over resamples, with runs of different length and ties."""
    rng = np.random.default_rng(7)
    runs = [i for i in range(6) for _ in range(2 + i % 3)]
    x = rng.integers(0, 5, len(runs)).astype(float)
    y = x + rng.normal(size=len(runs)) * 2
    found = predictors.correlate(list(x), list(y), runs, resamples=200, seed=3)
    generator, draws = np.random.default_rng(3), []
    for _ in range(200):
        picked = [i for run in generator.integers(0, 6, 6) for i, of in enumerate(runs) if of == run]
        draws.append(stats.spearmanr(x[picked], y[picked]).statistic)
    assert (found.low, found.high) == pytest.approx(tuple(np.nanquantile(draws, (0.025, 0.975))), abs=1e-12)


def test_the_rules_are_measured_on_their_labelled_set() -> None:
    found = refusals.rules_quality()
    assert found.precision.of >= 50
    assert found.recall.of >= 50
    assert found.precision.value >= 0.95
    assert found.recall.value >= 0.95


def test_p_counts_items_that_share_a_passage_as_fewer() -> None:
    """Whole passages are lost or gained at random: p below 0.05 in at most 5 % of cases, not in half of them."""
    draw = np.random.default_rng(0)
    passages = np.repeat(np.arange(40), 10)
    small = 0
    for _ in range(200):
        kind = np.repeat(draw.choice(3, size=40, p=[0.2, 0.2, 0.6]), 10)  # lost, gained, kept
        small += results._p(t.Paired.of(kind != 1, kind != 0, clusters=passages)) < 0.05
    assert small <= 15
    own = counted(300, 45, 20, 135)
    assert results._p(own) == t.mcnemar(45, 20)


def test_the_sentence_of_the_relearning_probe_has_its_numbers() -> None:
    right, back, new = t.wilson(8, 16), t.wilson(6, 8), t.wilson(1, 4)
    found = Relearned("knowledge", 12, 16, right, right, right, right, back, new, steps=2)
    said = "knowledge: after 2 steps on the other half, 75 % [41, 93] of 8 lost items come back, and 25 % of 4 that"
    assert found.sentence().startswith(said)


def test_categories_with_graded_scores_have_no_p_and_are_no_tests() -> None:
    pairs = t.Paired.of([0.5] * 10 + [1.0] * 10, [0.25] * 10 + [0.0] * 10)
    lost, graded = results.slices_of(pairs, np.repeat(["graded", "right or wrong"], 10))
    assert lost.p == lost.p_holm == t.mcnemar(10, 0)
    assert math.isnan(graded.p)
    assert math.isnan(graded.p_holm)


@pytest.mark.full
def test_the_pure_part_needs_neither_torch_nor_the_harness() -> None:
    modules = "transitions, predictors, refusals, judges, results, suites, evaluate, study_runs, relearn, harness"
    code = f"import sys; from forgetting.capabilities import {modules}; sys.exit(any(m in sys.modules for m in "
    code += "('torch', 'transformers', 'lm_eval', 'datasets')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("all_hit", [True, False])
def test_a_share_of_0_or_1_in_clusters_still_has_an_interval(all_hit: bool) -> None:
    clusters = np.repeat(np.arange(60), 5)
    found = t.share(np.full(300, all_hit), np.ones(300, bool), clusters)
    expected = t.wilson(60 if all_hit else 0, 60)
    assert (found.count, found.of) == (300 if all_hit else 0, 300)
    assert (found.low, found.high) == (expected.low, expected.high)
    assert found.high - found.low > 0.05

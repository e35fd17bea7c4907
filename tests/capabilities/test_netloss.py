"""Bounds and verdicts on the net loss of answers: closed forms, error rates by enumeration, power."""

from __future__ import annotations

import doctest
import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from forgetting.capabilities import gate, netloss
from forgetting.capabilities import transitions as t
from forgetting.capabilities.gate import judge, judged
from forgetting.capabilities.netloss import NetLoss, detectable, net_loss
from forgetting.cli.evaluate import GateOptions, shares_of
from forgetting.cli.summaries import Case, as_junit
from forgetting.errors import UsageError


def of(lost: float, gained: float, n: int) -> NetLoss:
    return NetLoss(lost, gained, n, n)


@pytest.mark.parametrize("module", [netloss, gate])
def test_doctests(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [5, 59, 300])
def test_without_losses_the_bound_is_exact(n: int) -> None:
    """(1 - share)^n = 0.05, less what goes to the share gained (a fiftieth)."""
    assert of(0, 0, n).high(0.95) == pytest.approx(1 - 0.049 ** (1 / n), abs=2e-5)
    assert of(0, 0, n).low(0.95) == pytest.approx(-(1 - 0.049 ** (1 / n)), abs=2e-5)


def test_the_score_equals_a_grid_search_for_the_likeliest_shares() -> None:
    """Tango's closed form against the likelihood on a grid of shares gained."""
    n, lost, gained, share = 200, 17, 9, 0.02
    q = np.linspace(1e-6, 0.48, 200_001)
    log = lost * np.log(q + share) + gained * np.log(q) + (n - lost - gained) * np.log1p(-2 * q - share)
    best = q[np.nanargmax(log)]
    assert float(netloss.likeliest_gained(lost, gained, n, share)) == pytest.approx(best, abs=1e-5)
    spread = math.sqrt(n * (2 * best + share - share**2))
    assert float(netloss.score(lost, gained, n, share)) == pytest.approx((lost - gained - n * share) / spread, rel=1e-4)


def errs(n: int, lost: float, gained: float, confidence: float = 0.95) -> tuple[float, float]:
    """Probability that the truth is above the upper bound, and below the lower one, summed over all outcomes."""
    above = below = 0.0
    for x in range(n + 1):
        for y in range(n + 1 - x):
            chance = stats.multinomial.pmf([x, y, n - x - y], n, [lost, gained, 1 - lost - gained])
            if chance > 1e-6:
                above += chance * (of(x, y, n).high(confidence) < lost - gained)
                below += chance * (of(x, y, n).low(confidence) > lost - gained)
    return above, below


@pytest.mark.parametrize(("lost", "gained"), [(0.1, 0.02), (0.05, 0.05)])
def test_bounds_err_at_most_at_the_nominal_rate(lost: float, gained: float) -> None:
    assert max(errs(20, lost, gained)) <= 0.053


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 50])
@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.0), (0.05, 0.05), (0.1, 0.02), (0.1, 0.08), (0.2, 0.1)])
def test_bounds_err_at_most_at_the_nominal_rate_for_more_items(n: int, lost: float, gained: float) -> None:
    assert max(errs(n, lost, gained)) <= 0.053


def test_a_lower_bound_above_zero_agrees_with_mcnemar() -> None:
    for lost, gained in ((3, 0), (4, 0), (5, 0), (6, 1), (8, 1), (30, 18), (31, 18)):
        p = stats.binomtest(lost, lost + gained, alternative="greater").pvalue
        found = of(lost, gained, 300)
        assert found._p_none == pytest.approx(p, rel=1e-9)
        assert (found.low(0.95) > 0) <= (p <= 0.05)
        assert found.low(0.95) == pytest.approx(-of(gained, lost, 300).high(0.95)) or found.low(0.95) == 0


def test_items_that_share_a_passage_count_as_fewer() -> None:
    rng = np.random.default_rng(0)
    after = 1.0 - (rng.random(40) < 0.1)
    alone = net_loss(t.Paired.of(np.ones(40), after))
    tripled = net_loss(t.Paired.of(np.ones(120), np.repeat(after, 3), clusters=np.repeat(np.arange(40), 3)))
    assert alone.independent == 40
    assert 33 <= tripled.independent <= 40  # at most 40: the correlation within passages is itself estimated
    still = net_loss(t.Paired.of(np.ones(120), np.ones(120), clusters=np.repeat(np.arange(40), 3)))
    assert (still.independent, still.n) == (40, 120)
    assert net_loss(t.Paired.of(np.ones(9), np.ones(9), clusters=np.zeros(9))).independent == 1


def test_scores_between_right_and_wrong_have_students_bounds() -> None:
    before, after = np.array([0.5, 1.0, 0.7, 0.2, 0.9, 0.4]), np.array([0.4, 0.6, 0.7, 0.3, 0.9, 0.1])
    found, falls = net_loss(t.Paired.of(before, after)), before - after
    half = stats.t.ppf(0.95, 5) * falls.std(ddof=1) / math.sqrt(6)
    assert (found.low(0.95), found.high(0.95)) == pytest.approx((falls.mean() - half, falls.mean() + half))
    same = net_loss(t.Paired.of(before, before))
    assert same.high(0.95) == pytest.approx(1 - 0.05 ** (1 / 6))
    assert judge(same, 0.02, 0.95).verdict == "undecided"


def test_verdicts_and_words() -> None:
    over = judge(of(45, 20, 500), 0.02, 0.95)
    assert (over.verdict, over.exit_code()) == ("over", 3)
    assert over.sentence().startswith(
        "over budget: 45 lost and 20 gained of 500 items, net loss of 5.0 points, at least 2.4;"
    )
    within = judge(of(2, 3, 500), 0.02, 0.95)
    assert (within.verdict, within.exit_code(strict=True)) == ("within", 0)
    assert "3 gained of 500 items, net gain of 0.2 points, at most a net loss of 0.7; budget 2.0;" in within.sentence()
    unclear = judge(of(5, 9, 60), 0.02, 0.95).sentence()
    assert "net gain of 6.7 points, between a net gain of 17.7 and a net loss of 4.2 points; budget 2.0" in unclear
    assert "net gain of 12.0 points, at least 9.7; budget 0;" in judge(of(0, 60, 500), 0, 0.95).sentence()
    none = judge(of(0, 0, 422), 0, 0.95)
    assert none.verdict == "within"
    assert "a loss of up to 0.7 points may be undetected; budget 0" in none.sentence()
    few = judge(of(0, 0, 60), 0, 0.95)
    assert few.verdict == "undecided"
    assert few.items_needed is not None
    assert 120 <= few.items_needed <= 180
    assert judge(of(0, 0, few.items_needed + 5), 0, 0.95).verdict == "within"
    one = judge(of(1, 0, 422), 0, 0.95)
    assert (one.verdict, one.exit_code(), one.exit_code(strict=True)) == ("undecided", 0, 3)
    assert one.exit_code(strict=True, allow_undecided=True) == 0
    assert "too few" in judge(of(0, 0, 4), 0.1, 0.95).sentence()
    assert judge(of(0, 0, 4), 0.1, 0.95).exit_code() == 3  # it could not have decided


def test_groups_are_found_by_name_and_judged_together() -> None:
    losses = {
        ("reasoning", "arc"): of(12, 3, 300),
        ("reasoning", "gsm8k"): of(0, 0, 300),
        ("safety", "refusals"): of(0, 0, 300),
    }
    both = judged(losses, {"reasoning": 0.02, "gsm8k": 0.05}, 0.95)
    assert {name: one.budget for name, one in both.items()} == {"arc": 0.02, "gsm8k": 0.05}
    assert both["arc"].low == pytest.approx(of(12, 3, 300).low(0.975))
    assert both["arc"].high == pytest.approx(of(12, 3, 300).high(0.95))
    assert list(judged(losses, 0.1, 0.95)) == ["arc", "gsm8k", "refusals"]
    with pytest.raises(UsageError, match=r"max_lost of 'reasonin': nothing was asked .* did you mean 'reasoning'"):
        judged(losses, {"reasonin": 0.1}, 0.95)
    with pytest.raises(UsageError, match=r"max_lost of 'arc' 2: must be a share of the items from 0 to below 1"):
        judged(losses, {"arc": 2}, 0.95)


@pytest.mark.parametrize(("n", "gained", "budget"), [(300, 0.02, 0.0), (200, 0.01, 0.02)])
def test_the_named_loss_is_detected_in_four_of_five_cases(n: int, gained: float, budget: float) -> None:
    true = detectable(gained, n, budget, 0.95)
    assert true is not None
    rng = np.random.default_rng(0)
    counts = rng.multinomial(n, [gained + true, gained, 1 - 2 * gained - true], size=150)
    seen = np.mean([netloss.p_less(float(y), float(x), n, -budget, 0.001) <= 0.05 for x, y, _ in counts])
    assert 0.68 <= seen <= 0.9


@pytest.mark.slow
def test_identity_and_noise_are_not_called_a_loss() -> None:
    """200 gates of three suites: no item changes; or one of 300 goes either way by chance, as of copies in bfloat16."""
    assert judge(of(0, 0, 300), 0, 0.95).verdict == "within"
    rng = np.random.default_rng(0)
    counts = rng.multinomial(300, [0.0016, 0.0016, 0.9968], size=(200, 3))
    p = {
        (int(x), int(y)): judge(of(float(x), float(y), 300), 0, 0.95, of=3).verdict for x, y, _ in counts.reshape(-1, 3)
    }
    assert "over" not in p.values()


def test_shares_on_the_command_line() -> None:
    assert shares_of(["0.02"], 0.95) == 0.02
    assert shares_of(["knowledge=0.02", "refusals=0"], 0.95) == {"knowledge": 0.02, "refusals": 0.0}
    for given, says in (
        (["knowledge=2 %"], "got 'knowledge=2 %'; give a share"),
        (["a=0.1", "a=0.2"], "two shares for 'a'"),
        (["0.1", "a=0.2"], "a share for all and shares by name"),
        (["a=1.5"], "must be a share"),
        (["a=nan"], "must be a share"),
    ):
        with pytest.raises(UsageError, match=says):
            shares_of(given, 0.95)
    with pytest.raises(UsageError, match="--strict: only with --max-lost"):
        GateOptions(strict=True).budget()


def test_junit_is_valid_whatever_a_name_contains() -> None:
    hostile = 'a"><failure>&\x1b[31m\x00\ufffe\ud800\n'
    cases = [Case(hostile, "over", "over: <b>", 3), Case("b", "undecided", "?", 0), Case("c", "within", "fine", 0)]
    found = ElementTree.fromstring(as_junit("forgetting check", hostile, cases).encode())
    assert {key: found.get(key) for key in ("tests", "failures", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "skipped": "1",
    }
    rows = found.findall("testsuite/testcase")
    assert [[part.tag for part in row] for row in rows] == [["failure"], ["skipped"], ["system-out"]]
    assert rows[0].get("name", "").startswith('a"><failure>&')
    failure = rows[0].find("failure")
    assert failure is not None
    assert (failure.text, failure.get("type")) == ("over: <b>", "over")


def test_a_verdict_is_plain_data() -> None:
    row = judge(of(1, 0, 422), 0, 0.95).to_dict()
    assert json.loads(json.dumps(row)) == row
    assert (row["lost"], row["gained"], row["n"]) == (1, 0, 422)

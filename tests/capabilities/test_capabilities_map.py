"""The map from a profile's forgetting to the share of answers lost: fit, left-out runs, and its part of the report."""

from __future__ import annotations

import re

import numpy as np
import pytest

from forgetting.capabilities.predictors import fit_map, left_out
from forgetting.reporting.capabilities import study_section


def pooled(y: list[float]) -> list[float]:
    """Pool adjacent violators, the slow way."""
    blocks = [[value] for value in y]
    at = 0
    while at < len(blocks) - 1:
        if np.mean(blocks[at]) > np.mean(blocks[at + 1]):
            blocks[at : at + 2] = [blocks[at] + blocks[at + 1]]
            at = max(at - 1, 0)
        else:
            at += 1
    return [float(np.mean(block)) for block in blocks for _ in block]


def simulated(seed: int, runs: int = 12) -> tuple[list[float], list[float], list[int]]:
    """Four steps of each run; a run has an error of its own, and each share is of 100 answers."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 2, (runs, 4))
    true = np.clip(1 - np.exp(-x) + 0.05 * rng.normal(size=(runs, 1)), 0, 1)
    lost = rng.binomial(100, true) / 100
    return list(x.ravel()), list(lost.ravel()), [run for run in range(runs) for _ in range(4)]


def test_the_map_is_pooled_and_linear_between_its_steps() -> None:
    x, y, runs = simulated(0)
    found = fit_map(x, y, runs)
    assert found is not None
    order = np.argsort(x)
    assert found.knots == pytest.approx([0.0, *np.asarray(x)[order]])
    assert found.shares == pytest.approx(pooled([0.0, *np.asarray(y)[order]]))
    assert found.at(-1.0)[0] == found.at(0.0)[0] == 0.0
    middle = (found.knots[5] + found.knots[6]) / 2
    assert found.at(middle)[0] == pytest.approx((found.shares[5] + found.shares[6]) / 2)
    value, low, high = found.at(1.0)
    assert 0 <= low <= value <= high <= 1


def test_a_left_out_run_does_not_change_its_own_prediction() -> None:
    x, y, runs = simulated(1)
    before = [one for one in left_out(x, y, runs) if one.run == 3]
    changed = [1.0 if run == 3 else share for share, run in zip(y, runs, strict=True)]
    after = [one for one in left_out(x, changed, runs) if one.run == 3]
    assert [(one.value, one.low, one.high) for one in before] == [(one.value, one.low, one.high) for one in after]
    assert left_out(x[:16], y[:16], runs[:16]) == []  # three others are too few
    assert fit_map(x[:12], y[:12], runs[:12]) is None


def test_the_band_has_about_nominal_coverage() -> None:
    """20 studies of 12 runs: the band from the other runs, with 44 steps, covers about 95 % of a run's shares."""
    inside = [one.inside for seed in range(20) for one in left_out(*simulated(seed))]
    assert 0.88 <= np.mean(inside) <= 0.98


def test_the_report_predicts_the_share_lost_and_how_reliable_that_is() -> None:
    x, y, runs = simulated(2)
    rows = [
        {
            "run_id": f"r<{run}>",
            "step": step,
            "suite": "knowledge",
            "name": "knowledge",
            "dataset": "chat" if run % 2 else "news",
            "base": 1.0,
            "profile": a,
            "changed": None,
            "forgetting": 0.3,
            "agreement": 0.5,
            "agreement_low": 0.4,
            "agreement_high": 0.6,
            **{
                f"{what}{end}": value
                for what, value in (("lost", b), ("tuned", 1 - b))
                for end in ("", "_low", "_high")
            },
        }
        for step, (a, b, run) in enumerate(zip(x, y, runs, strict=True))
    ]
    page = str(study_section(rows, {}, {}))
    assert "a model that forgets" in page
    assert "of what it knew" in page
    assert "isotonic regression" in page
    assert re.search(r"95 % band contains \d+ of 48 shares", page)
    assert "forgetting on the study&#39;s text with the suite&#39;s name</em> 0." in page
    assert "r<1>" not in page
    assert "isotonic regression" not in study_section([{**row, "profile": None} for row in rows], {}, {})

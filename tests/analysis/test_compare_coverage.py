"""Coverage of intervals on simulated studies with noise by run and along each run (bench/compare.py has more)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forgetting.analysis.compare import contest, read_source
from forgetting.analysis.compare.source import AXES
from simulated import study

pytestmark = pytest.mark.full

DESIGNS: dict[str, dict[str, Any]] = {
    "same rank, 3 seeds": {"contenders": {"twin": {"rank": 16}}},
    "same rank, other seeds": {"contenders": {"twin": {"rank": 16, "seeds": (5, 6, 7)}}},
    "no rank in common": {"ranks": (4, 8, 16, 32, 64, 128), "contenders": {"twin": {}}},
    "no rank in common, one seed": {"ranks": (4, 8, 16, 32, 64, 128), "seeds": (0,), "contenders": {"twin": {}}},
}


def intervals(design: dict[str, Any], count: int, truth: float = 0.0) -> np.ndarray:
    """[count, 2] Whether the interval covers the truth, and whether it excludes 0."""
    out = []
    for i in range(count):
        table = study(np.random.default_rng([11, i]), **design)
        e = contest(read_source(table, "d", AXES["finetune_loss"]), "lora").contenders[0].saving
        assert e.known
        out.append((e.low <= truth <= e.high, not e.low <= 0 <= e.high))
    return np.array(out, dtype=float)


@pytest.mark.parametrize("name", DESIGNS)
def test_a_copy_of_the_reference_gets_an_interval_around_0_in_93_of_100_studies(name):
    assert intervals(DESIGNS[name], 100)[:, 0].sum() >= 93


@pytest.mark.slow
def test_a_saving_of_0_1_nats_is_found_with_the_stated_power():
    """docs/notes/coverage.md states 94 % for five seeds at this noise; 100 studies have an error of 2.4 points."""
    found = intervals({"seeds": range(5), "contenders": {"saver": {"rank": 16, "saving": 0.1}}}, 100, truth=0.1)
    assert found[:, 1].sum() >= 84
    assert found[:, 0].sum() >= 90


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_coverage_over_many_studies(name):
    """Nominal 95 %: 400 studies have a standard error of 1.1 points."""
    assert 0.92 <= intervals(DESIGNS[name], 400)[:, 0].mean() <= 0.985

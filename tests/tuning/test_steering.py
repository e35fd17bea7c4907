"""Steering a penalty's weight: simulated runs end at the budget, states round-trip through JSON, limits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from forgetting.tuning.steering import FIRST, MOST, Steering, grid


def simulated(steering, *, end, power=0.43, scale=0.02, lag=12.0, noise=0.0, seed=0):
    """Forgetting at the end of a run whose plain curve rises to `end`, and which follows the weight with a lag."""
    rng, held = np.random.default_rng(seed), 0.0
    steps = steering.steps
    plain = [end * (1 - math.exp(-4 * step / steps)) / (1 - math.exp(-4)) for step in range(1, steps + 1)]
    value = 0.0
    for step in range(steps):
        if steering.due(step):
            steering.measured(step, value * math.exp(noise * rng.normal()), 0.02 * value)
        held += (-power * math.log1p(steering.weight / scale) - held) * (1 - math.exp(-1 / lag))
        value = plain[step] * math.exp(held)
    return value


@pytest.mark.parametrize("steps", [60, 400])
@pytest.mark.parametrize("budget", [0.1, 0.2])
def test_a_run_as_the_model_assumes_ends_at_the_budget(budget, steps):
    assert simulated(Steering(budget, steps), end=0.3) == pytest.approx(budget, rel=0.05)


@pytest.mark.parametrize("other", [{"power": 0.3}, {"power": 0.6}, {"lag": 6.0}, {"lag": 20.0}, {"scale": 0.06}])
def test_a_run_of_another_kind_ends_near_the_budget(other):
    ends = [simulated(Steering(0.15, 60), end=0.3, noise=0.01, seed=seed, **other) for seed in range(3)]
    assert np.abs(np.log(np.array(ends) / 0.15)).max() < 0.15
    assert simulated(Steering(0.15, 400), end=0.3, noise=0.01, **other) == pytest.approx(0.15, rel=0.1)


def test_a_state_from_json_continues_with_the_same_weights():
    whole, first, second = (Steering(0.15, 60) for _ in range(3))
    values = {step: 0.3 * (1 - math.exp(-step / 20)) for step in grid(60)}
    for step, value in values.items():
        whole.measured(step, value, 0.01, value * 1.05 if whole.whole_due(step) else None)
        if step <= 40:
            first.measured(step, value, 0.01, value * 1.05 if first.whole_due(step) else None)
    second.load(json.loads(json.dumps(first.state())))
    for step, value in values.items():
        assert second.due(step) == (step > 40)
        if second.due(step):
            second.measured(step, value, 0.01, value * 1.05 if second.whole_due(step) else None)
    assert second == whole
    assert whole.ratio == pytest.approx(1.05)
    assert whole.weight != FIRST


def test_the_grid_is_dense_where_it_counts():
    assert grid(60) == [*range(3, 49, 3), 49, 50, 52, 53, 54, 55, 56, 58, 59]
    assert len(grid(10_000)) == 25
    assert grid(8) == [*range(1, 8)]


def test_unreachable_budgets_are_reported():
    below = Steering(0.5, 60)
    simulated(below, end=0.2)
    assert "nothing needs to be held back" in below.said["below"]
    above = Steering(0.01, 60)
    simulated(above, end=0.3, power=0.0)
    assert above.weight > MOST / 1.5
    assert "above the budget of 0.01 though the penalty has its largest weight" in above.said["above"]
    early = Steering(0.01, 60)
    early.measured(6, 0.05, 0.001)
    assert "in the first tenth" in early.said["early"]

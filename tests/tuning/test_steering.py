"""Steering a penalty's weight: simulated runs end at the budget, states round-trip through JSON, limits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from forgetting.tuning.steering import BEGIN, LAG, MOST, POWER, SCALE, Steering, grid


def simulated(steering, *, end, power=POWER, scale=SCALE, lag=LAG, noise=0.0, seed=0):
    """Forgetting at the end of a run whose plain curve rises to `end`, and which follows the weight with a lag."""
    rng, held, value = np.random.default_rng(seed), 0.0, 0.0
    for step in range(steering.steps):
        if steering.due(step):
            steering.measured(step, value * math.exp(noise * rng.normal()), 0.02 * value)
        done = steering.clock[step + 1]
        held += (-power * math.log1p(steering.weight / scale) - held) * (
            1 - math.exp((steering.clock[step] - done) / lag)
        )
        value = end * (1 - math.exp(-4 * done)) / (1 - math.exp(-4)) * math.exp(held)
    return value


SCHEDULES = {
    "constant": lambda done: 1.0,
    "warm-up": lambda done: min(1.0, 6 * done),
    "linear": lambda done: min(6 * done, 1.0) * (1 - done),
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


@pytest.mark.parametrize("schedule", [*SCHEDULES])
@pytest.mark.parametrize("steps", [60, 400])
@pytest.mark.parametrize("budget", [0.1, 0.2])
def test_a_run_as_the_model_assumes_ends_at_the_budget(budget, steps, schedule):
    rates = [SCHEDULES[schedule](step / steps) for step in range(steps)]
    assert simulated(Steering(budget, steps, rates), end=0.3) == pytest.approx(budget, rel=0.05)


@pytest.mark.parametrize("other", [{"power": 0.5}, {"power": 1.2}, {"lag": 0.2}, {"lag": 1.0}, {"scale": 0.15}])
def test_a_run_of_another_kind_ends_near_the_budget(other):
    ends = [simulated(Steering(0.15, 60), end=0.3, noise=0.01, seed=seed, **other) for seed in range(3)]
    assert np.abs(np.log(np.array(ends) / 0.15)).max() < 0.1


def test_nothing_is_held_back_before_it_is_called_for():
    steering = Steering(0.1, 60)
    simulated(steering, end=0.3)
    (_, first), (step, second) = steering.moves[:2]
    assert first == 0
    assert second > 0
    assert 60 * BEGIN <= step < 60 * BEGIN + 3
    loose = Steering(0.31, 60)
    assert simulated(loose, end=0.3) == pytest.approx(0.3, rel=0.05)


def test_what_was_measured_in_the_warm_up_does_not_count():
    """There the curve rises by powers of ten, which says nothing of the rest of the run."""
    rates = [min(1.0, step / 10) for step in range(60)]
    one, other = Steering(0.1, 60, rates), Steering(0.1, 60, rates)
    for step in grid(60)[:10]:
        one.measured(step, 0.001 if step < 10 else 0.01 * step, 0.0001)
        other.measured(step, 0.01 * step, 0.0001)
    assert one.moves == other.moves
    assert one.weight > 0


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
    assert whole.weight > 0


def test_a_sample_within_its_noise_gives_no_ratio_to_the_whole_text():
    """Before, all later measurements were multiplied by this one's accident, and the penalty set in for nothing."""
    steering = Steering(0.05, 100)
    steering.measured(30, 0.0001, 0.001, whole=0.004)
    assert steering.ratio == 1
    for step in (35, 40, 45):
        steering.measured(step, 0.00015 * step, 0.001)
    assert steering.weight == 0
    steering.measured(50, 0.0075, 0.001, whole=0.009)
    assert steering.ratio == pytest.approx(1.2)


def test_the_grid_is_dense_where_it_counts():
    assert grid(60) == [*range(3, 49, 3), 49, 50, 52, 53, 54, 55, 56, 58, 59]
    assert len(grid(10_000)) == 25
    assert grid(8) == [*range(1, 8)]


def test_unreachable_budgets_are_reported():
    below = Steering(0.5, 60)
    simulated(below, end=0.2)
    assert below.said["below"].endswith("even without a penalty from here on: no penalty is needed")
    above = Steering(0.01, 60)
    simulated(above, end=0.3, power=0.0)
    assert above.weight == MOST
    assert "above the budget of 0.01 even with the largest weight" in above.said["above"]
    for budget in (0.05, 0.25):
        lands = Steering(budget, 60)
        simulated(lands, end=0.3)
        assert not lands.said.keys() & {"above", "below"}, budget


def test_what_can_be_known_in_the_first_tenth_is_said_there(caplog):
    early = Steering(0.01, 60)
    early.measured(6, 0.05, 0.001)
    assert "in the first tenth" in early.said["early"]
    noise = Steering(0.001, 60)
    noise.measured(3, 0.0002, 0.0005)
    assert "cannot be distinguished from zero" in noise.said["noise"]
    held = Steering(0.002, 400)
    for step in grid(400)[:2]:
        held.measured(step, 0.1 + 0.001 * step, 0.001)
    assert "above the budget of 0.002 even with the largest weight" in held.said["above"]
    assert [record.getMessage() for record in caplog.records] == [
        text for steering in (early, noise, held) for text in steering.said.values()
    ]
    fine = Steering(0.1, 400)
    for step in grid(400)[:2]:
        fine.measured(step, 0.02 + 0.001 * step, 0.001)
    assert not fine.said


@pytest.mark.parametrize(
    ("forgetting", "error", "expected"),
    [
        (0.109, 0.01, None),
        (0.091, 0.01, None),
        (0.12, 0.0123, "forgetting of 0.12 nats/token (standard error 0.012), 20% above the budget of 0.1; train less"),
        (0.05, None, "0.05 nats/token (unknown standard error), 50% below the budget of 0.1; there is room to train"),
        (math.nan, None, "forgetting of nan nats/token (unknown standard error): training diverged"),
    ],
)
def test_a_missed_budget_is_reported_at_the_end(forgetting, error, expected, caplog):
    steering = Steering(0.1, 60)
    steering.ended(59, forgetting, error)
    if expected is None:
        assert not caplog.messages
        return
    (message,) = caplog.messages
    assert message.startswith("the run ended at step 59 of 60 with")
    assert expected in message

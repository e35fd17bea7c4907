"""Forecasts of a run's end: the filter against a dense twin, bands on simulated runs, crossings, schedules."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from forgetting.errors import UsageError
from forgetting.measuring import forecast as module
from forgetting.measuring.forecast import ANY, PLAIN, Forecast, forecast

STEPS, VALUES, ERRORS = [0, 12, 20, 28, 36], [0.0, 0.09, 0.17, 0.21, 0.23], [0.0, 0.004, 0.006, 0.007, 0.008]


def simulated(rng, prior, u, fine=40):
    """One run's values along u, drawn from the prior by small steps of its equation."""
    level, slope = rng.normal(*prior.level), rng.normal(*prior.first)
    log, logs = math.log(0.05), [math.log(0.05)]
    for a, b in itertools.pairwise(u):
        d = (b - a) / fine
        for _ in range(fine):
            log += slope * d + prior.walk * math.sqrt(d) * rng.normal()
            slope += prior.back * (level - slope) * d + prior.slopes * math.sqrt(d) * rng.normal()
        logs.append(log)
    return np.exp(logs + prior.scatter * rng.normal(size=len(u)))


@pytest.mark.parametrize("prior", [PLAIN, ANY])
def test_the_filter_equals_regression_on_all_points_at_once(prior):
    """The joint covariance of all points, level and slope, written out; then one conditional distribution."""
    u, values, spread = np.log([12.0, 20, 28, 36, 60]), np.array(VALUES[1:]), np.array(ERRORS[1:])
    moves = [np.eye(3)]
    noises = [np.zeros((3, 3))]
    for a, b in itertools.pairwise(u):
        move, noise = module._transition(b - a, prior)
        moves.append(move @ moves[-1])
        noises.append(move @ noises[-1] @ move.T + noise)
    noise = prior.scatter**2 + prior.shared * (spread / values) ** 2
    start = np.diag([noise[0], prior.first[1] ** 2, prior.level[1] ** 2])
    mean = [(m @ [math.log(values[0]), prior.first[0], prior.level[0]])[0] for m in moves]
    joint = np.empty((5, 5))
    for i in range(5):
        for j in range(5):
            a, b = min(i, j), max(i, j)
            at = moves[a] @ start @ moves[a].T + noises[a]
            joint[i, j] = (at @ (moves[b] @ np.linalg.inv(moves[a])).T)[0, 0]
    seen, new = [1, 2, 3], 4  # the first point is where the state begins
    covariance = joint[np.ix_(seen, seen)] + np.diag(noise[1:])
    gain = np.linalg.solve(covariance, joint[seen, new])
    residual = np.log(values[1:]) - np.array(mean)[seen]
    expected = mean[new] + gain @ residual
    scale = (prior.weight + residual @ np.linalg.solve(covariance, residual)) / (prior.weight + 3)
    variance = (joint[new, new] - gain @ joint[seen, new] + noise[-1]) * scale
    median, low, high, sd = module._filter(u[:4], values, spread, prior).at(u[4:])
    assert np.log(median[0]) == pytest.approx(expected, abs=1e-12)
    assert sd[0] == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert low[0] < median[0] < high[0]


def test_bands_cover_the_ends_of_runs_drawn_from_the_prior():
    rng, steps = np.random.default_rng(0), [12, 20, 28, 36, 60]
    held = []
    for _ in range(200):
        values = simulated(rng, ANY, np.log(steps))
        found = forecast(steps[:-1], values[:-1], [None] * 4, end=60)
        held.append(found.low <= values[-1] <= found.high)
    assert 0.9 <= np.mean(held) <= 1.0


def test_a_forecast_gives_the_end_and_when_the_budget_is_crossed():
    found = forecast(STEPS, VALUES, ERRORS, end=100, budget=0.24, prior=PLAIN)
    assert (found.step, found.end) == (36, 100)
    assert 0.23 < found.low < found.value < found.high < 0.5
    assert 36 <= found.crossing_low < found.crossing < found.crossing_high <= 100
    at = forecast(STEPS, VALUES, ERRORS, end=round(found.crossing), prior=PLAIN)
    assert at.value == pytest.approx(0.24, rel=0.01)
    assert 0.9 < found.chance < 1
    band = f"[{found.crossing_low:.0f}, {found.crossing_high:.0f}]"
    assert str(found).endswith(f"; the budget of 0.24 is crossed at about step {found.crossing:.0f} {band}")
    assert str(found).startswith("at step 100: 0.")
    assert set(found.logged()) == {
        *("forecast", "forecast_low", "forecast_high"),
        *("crossing", "crossing_low", "crossing_high"),
    }


@pytest.mark.parametrize(
    ("budget", "message"),
    [(0.1, "of 0.1 was crossed at about step 13"), (5.0, "of 5 is not crossed"), (0.3, "is crossed with a chance of")],
)
def test_a_budget_that_is_crossed_already_or_never(budget, message):
    assert message in str(forecast(STEPS, VALUES, ERRORS, end=60, budget=budget, prior=PLAIN))


def test_a_decaying_schedule_flattens_the_curve():
    """With rates, steps count by their learning rates: a decaying run ends like a constant one with the same sum."""
    rates = np.concatenate([np.ones(36), np.linspace(1, 0, 24)])
    bent = forecast(STEPS, VALUES, ERRORS, end=60, rates=rates * 1e-3)
    assert bent.value == pytest.approx(forecast(STEPS, VALUES, ERRORS, end=48).value)
    assert bent.high < forecast(STEPS, VALUES, ERRORS, end=60).high
    stopped = forecast(STEPS, VALUES, ERRORS, end=60, rates=[1] * 36 + [0] * 24)
    assert stopped.value == pytest.approx(0.23, rel=0.03)


def test_there_is_no_forecast_without_measurements():
    for values in ([0.0, 0.001, -0.02], [0.0, 0.1, math.nan]):
        found = forecast([0, 4, 8], values, [0.0, 0.01, 0.01], end=20, budget=0.1)
        assert (found.value, found.low, found.crossing, found.logged()) == (None, None, None, {})
        assert str(found).startswith("no forecast for step 20: ")
    assert forecast([], [], [], end=20) == Forecast(
        0, 20, why="forgetting at step 0 is not yet above 3 of its standard errors"
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": [0, 12, 12, 28, 36]}, "not increasing"),
        ({"end": 30}, "step 36 was measured, after the end at step 30"),
        ({"errors": [0.1]}, "give one each"),
        ({"rates": [1.0]}, "for each of 60 steps"),
    ],
)
def test_wrong_input_is_named(change, named):
    given = {"steps": STEPS, "forgetting": VALUES, "errors": ERRORS, "end": 60} | change
    with pytest.raises(UsageError, match=named):
        forecast(**given)

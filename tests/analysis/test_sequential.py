"""The choice of a pilot's next run against plain loops and simulated runs; and when a pilot ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_fit_table1 import NAMES, PER_RANK, closed_form

from forgetting.analysis.fit import Fit, fit_law
from forgetting.analysis.fit.objective import Objective
from forgetting.analysis.fit.solver import Problem, minimise
from forgetting.analysis.laws import PUBLISHED
from forgetting.analysis.plan.design import Design
from forgetting.analysis.plan.frontier import measured_spread
from forgetting.analysis.plan.next_run import noise_of
from forgetting.analysis.plan.sequential import Asked, Next, State, Stop, decide, finished

RANKS = (8, 16, 64, 256)
STEPS = tuple(range(50, 261, 30))
FLOOR = 0.6
FIRST = ((8, 0), (16, 0), (64, 0), (256, 0), (8, 1), (64, 1))


def rows(runs: tuple[tuple[int, int], ...], *, last: int = 260, seconds: float = 1.0) -> pd.DataFrame:
    """A study's table of runs with the losses of the paper's law, an offset each, and noise."""
    law = dict(PUBLISHED[NAMES[0]].parameters)
    made = []
    for rank, seed in runs:
        rng = np.random.default_rng([rank, seed])
        offset = rng.normal(0, 0.006, 2)
        for step in STEPS:
            finetune, forgetting = np.array(closed_form(law, PER_RANK * rank, step)) + offset + rng.normal(0, 0.003, 2)
            if step <= last:
                made.append(
                    {
                        "dataset": "d",
                        "rank": rank,
                        "seed": seed,
                        "run_id": f"{rank}-{seed}",
                        "status": "done",
                        "step": step,
                        "measure_start": 50,
                        "trainable_params": PER_RANK * rank,
                        "finetune_loss": finetune,
                        "forgetting_loss": forgetting,
                        "forgetting": forgetting - FLOOR,
                        "forgetting_floor": FLOOR,
                        "train_tokens": 100 * step,
                        "train_seconds": seconds * step,
                        "measure_seconds": 0.0,
                    }
                )
    return pd.DataFrame(made)


def asked(budget: float = 0.24, tolerance: float = 1e-6, ranks: tuple[int, ...] = RANKS) -> Asked:
    return Asked(budget, tolerance, ranks, STEPS)


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fit_law("shifted_power", rows(FIRST), label="d", bootstrap=0, starts=16)


def spread(fit: Fit, place: tuple[float, float], runs: tuple[tuple[int, int], ...], repeats: int = 400) -> float:
    """The brute-force twin: the spread of the forgetting loss at a point over fits to simulated runs."""
    law, theta, _ = fit.model()
    noise = noise_of(fit)
    table = rows(runs)
    x = {name: table[name].to_numpy(float) for name in ("trainable_params", "step")}
    rng = np.random.default_rng(1)
    index = np.unique(table["run_id"], return_inverse=True)[1]
    sizes = (repeats, 2, index.max() + 1)
    offsets = rng.normal(size=sizes)[:, :, index] * np.sqrt(noise.offset)[None, :, None]
    errors = rng.normal(size=(repeats, 2, len(table))) * np.sqrt(noise.within)[None, :, None]
    y = (law.values(theta[None], x) + offsets + errors).reshape(repeats, -1)
    start = np.repeat(theta[None], repeats, axis=0)
    made = minimise(Problem(law, x, Objective()), start, y, np.ones((1, y.shape[1])), max_iterations=100).theta
    at = {"trainable_params": np.array([place[0]]), "step": np.array([place[1]])}
    values = law.values(made, at)[:, law.outputs.index("forgetting_loss"), 0]
    # like a standard deviation, but not affected by refits that diverge
    low, high = np.quantile(values, [0.1587, 0.8413])
    return float(high - low) / 2


def test_the_error_of_a_design_is_that_of_fits_to_made_up_runs(fitted: Fit) -> None:
    place = (16.0 * PER_RANK, 150.0)
    design = Design(fitted, *place)
    found = []
    for more in ((), ((16, 1),), ((256, 1),), ((16, 1), (16, 2), (16, 3))):
        runs = (*FIRST, *more)
        found.append((design.error([PER_RANK * rank for rank, _ in runs], STEPS), spread(fitted, place, runs)))
    assert [one for one, _ in found] == pytest.approx([two for _, two in found], rel=0.12)
    now, near, far, many = (one for one, _ in found)
    assert many < near < now
    assert near < far


def test_the_next_run_narrows_the_answer_most_for_its_time() -> None:
    table = rows(FIRST)
    table.loc[table["rank"] > 8, "train_seconds"] *= 1.5  # a step takes longer with more parameters
    following, answer = decide(table, asked(), State(260, 1e6, overhead=20.0))
    assert isinstance(following, Next)
    assert answer is not None
    place = answer.choice
    design = Design(answer.fit, place.trainable_params, place.steps.value)
    sizes, runs = [PER_RANK * rank for rank, _ in FIRST], finished(table)
    gains = {}
    for rank in RANKS:
        share = design.error([*sizes, PER_RANK * rank], STEPS) / design.error(sizes, STEPS)
        gains[rank] = (1 - share) / (runs.takes(rank, 260) + 20.0)
    assert following.rank == max(gains, key=gains.__getitem__)
    assert following.narrowing / following.seconds == pytest.approx(gains[following.rank])
    assert (following.rank, following.seed) not in FIRST
    dear = {rank: 1.0 if rank == following.rank else 0.0 for rank in RANKS}
    table["train_seconds"] *= 1 + 1e3 * table["rank"].map(dear)
    other, _ = decide(table, asked(), State(260, 1e9))
    assert isinstance(other, Next)
    assert other.rank != following.rank


def test_the_first_runs_are_those_that_a_law_needs() -> None:
    none = decide(pd.DataFrame(), asked(), State(0, 100.0))[0]
    assert (none.rank, none.seed, none.steps) == (256, 0, STEPS[2])
    assert decide(pd.DataFrame(), asked(), State(150, 100.0))[0].steps == 170
    assert decide(pd.DataFrame(), asked(), State(0, 0.0))[0].reason == "time"
    longer = decide(rows(((256, 0),), last=110), asked(0.31), State(110, 1e6))[0]
    assert longer.rank is None
    assert longer.steps > 110
    assert longer.seconds == pytest.approx(longer.steps - 110)
    there = rows(((256, 0),))
    low = decide(there, asked(), State(260, 1e6))[0]
    assert (low.rank, low.seed, low.steps) == (8, 1, 260)
    middle = decide(pd.concat([there, rows(((8, 1),))]), asked(), State(260, 1e6))[0]
    assert (middle.rank, middle.seed) == (16, 2)
    lost = State(260, 1e6, lost=frozenset({256}))
    assert decide(rows(((8, 1), (16, 2))), asked(), lost)[0].rank == 64
    assert decide(there, asked(), State(260, 1e6, lost=frozenset({8, 16})))[0].reason == "unidentified"


def test_the_shortest_of_about_equally_good_runs_is_recommended() -> None:
    table = rows(FIRST)
    found = []
    for worse in (0.0, 0.05):
        table["finetune_loss"] += np.where(table["rank"] == 256, worse, 0.0)
        answer = decide(table, asked(), State(260, 1e6))[1]
        assert answer is not None
        choices = answer.plan.frontier
        most = min(choice.finetune_loss.value for choice in choices)
        most += 0.05 * measured_spread(answer.fit, "finetune_loss")
        good = [choice for choice in choices if choice.finetune_loss.value <= most]
        assert answer.choice == min(good, key=lambda choice: choice.steps.value)
        found.append((len(good), answer.choice.steps.value))
    assert found[0][0] > 1


def test_it_ends_if_there_is_no_answer_or_no_time() -> None:
    table = rows(FIRST)
    early = decide(table, asked(0.01), State(260, 1e6))[0]
    assert (early.reason, "by step 50" in early.why) == ("early", True)
    unspent = decide(table, asked(0.5), State(260, 1e6))[0]
    assert (unspent.reason, "in 260 steps" in unspent.why) == ("unspent", True)
    late, answer = decide(table, asked(), State(260, 100.0))
    assert isinstance(late, Stop)
    assert late.reason == "time"
    assert answer is not None
    assert "about 260 s, and 100 s are left" in late.why


def test_it_ends_when_the_band_is_narrow_and_not_before_there_are_enough_runs() -> None:
    table = rows(FIRST)
    following, answer = decide(table, asked(tolerance=0.5), State(260, 1e6))
    assert isinstance(following, Next)
    assert answer is not None
    assert answer.half_width < 0.5
    assert "the band may be narrow by chance until there are 7 runs" in following.why
    following, answer = decide(rows((*FIRST, (16, 2))), asked(tolerance=0.5), State(260, 1e6))
    assert isinstance(following, Stop)
    assert following.reason == "tolerance"
    assert answer is not None
    forgetting = answer.forgetting
    assert answer.half_width == pytest.approx((forgetting.high - forgetting.low) / 2 / 0.24)
    assert forgetting.low < 0.24 < forgetting.high
    assert forgetting.value == pytest.approx(0.24)
    few, answer = decide(table[table["run_id"].isin(["8-0", "16-0", "256-0"])], asked(tolerance=0.5), State(260, 1e6))
    assert isinstance(few, Next)
    assert answer is not None
    assert np.isnan(answer.half_width)
    assert "a band needs 5 runs" in few.why


def test_a_rank_whose_only_run_leaves_the_law_without_a_band_gets_another() -> None:
    runs = ((8, 0), (16, 1), (16, 2), (256, 3), (256, 4))
    following, answer = decide(rows(runs), asked(tolerance=0.5), State(260, 1e6))
    assert answer is not None
    assert np.isnan(answer.half_width)
    assert isinstance(following, Next)
    assert (following.rank, following.why) == (8, "the rank with the fewest runs, as there is no band yet")
    _, answer = decide(rows((*runs, (8, 5))), asked(tolerance=0.5), State(260, 1e6))
    assert answer is not None
    assert answer.half_width < 0.5


def test_runs_are_lengthened_if_the_answer_is_beyond_them() -> None:
    table = rows(FIRST, last=110)
    level = float(np.max(table["forgetting"])) - 0.001  # all but the highest rank need more steps
    following, answer = decide(table, replace(asked(level), ranks=RANKS), State(110, 1e6))
    assert isinstance(following, Next)
    assert answer is None or answer.choice.steps.value > 110 or following.rank is not None

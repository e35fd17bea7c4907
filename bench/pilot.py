"""Savings of a pilot and coverage of its bands: simulated sessions against full grids, by `--part pilot`.

Truth and noise are those of `coverage.py`, design `ar`; in the design `seeds`, a third of the noise variance is common
to the runs of one seed, about as much as in the miniature's runs. A full grid has four ranks and three seeds, all runs
with 260 steps. Its plan for a budget has a band of forgetting at the recommended run. The pilot's tolerance is the
median half width of these bands. Compared are the steps of all runs, the errors of the plans, and how often each band
covers the true forgetting at its recommended run. The pilot checks its band after each run and ends when it is narrow,
which might favour bands that are narrow by chance.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from coverage import OUTPUTS, PER_RANK, STEPS, mean, noise
from forgetting.analysis.fit import fit_study
from forgetting.analysis.plan.sequential import Answer, Asked, Next, State, answer_of, decide, finished

RANKS = (8, 16, 32, 64, 128)
GRID = [(rank, seed) for rank in (8, 16, 64, 128) for seed in (10, 11, 12)]
FLOOR = 0.6
BUDGETS = (0.18, 0.24, 0.28)
SHARED = {"ar": 0.0, "seeds": 1 / 3}
"""By design: share of the noise's variance that runs of one seed have in common."""
MOST = 24
"""Number of runs after which a session is given up."""


def rows(number: int, seed: int, runs: list[tuple[int, int]], last: int, *, shared: float = 0.0) -> pd.DataFrame:
    """The table of the given runs; the noise of a run is always the same."""

    def drawn(*of: int) -> np.ndarray:
        return noise(np.random.default_rng([seed, number, *of]), STEPS, heavy=False)

    parts = []
    for rank, one in runs:
        errors = np.sqrt(1 - shared) * drawn(rank, one) + np.sqrt(shared) * drawn(one)
        losses = mean(rank * PER_RANK, STEPS) + errors
        columns = {"dataset": "d", "run_id": f"{rank}-{one}", "status": "done", "rank": rank, "seed": one}
        columns |= {"trainable_params": rank * PER_RANK, "step": STEPS, "measure_start": int(STEPS[0])}
        columns |= dict(zip(OUTPUTS, losses, strict=True)) | {"forgetting_floor": FLOOR}
        columns |= {"forgetting": losses[1] - FLOOR, "train_tokens": STEPS * 1000}
        columns |= {"train_seconds": STEPS * 1.0, "measure_seconds": 0.0}
        parts.append(pd.DataFrame(columns))
    made = pd.concat(parts)
    return made[made["step"] <= last].reset_index(drop=True)


def session(number: int, seed: int, task: Asked, *, shared: float = 0.0) -> tuple[str, Answer | None, float, int]:
    """Why a session ended, its answer, the steps of all runs, and their number."""
    runs: list[tuple[int, int]] = []
    last, spent = 0, 0.0
    while True:
        table = rows(number, seed, runs, last, shared=shared) if runs else pd.DataFrame()
        following, answer = decide(table, task, State(last, 1e9))
        if not isinstance(following, Next):
            return following.reason, answer, spent, len(runs)
        if len(runs) >= MOST:
            return "given up", answer, spent, len(runs)
        spent += len(runs) * (following.steps - last)
        last = following.steps
        if following.rank is not None and following.seed is not None:
            runs.append((following.rank, following.seed))
            spent += last


def error(answer: Answer) -> float:
    """How far the true forgetting at the recommended run is from the budget, in nats."""
    at = answer.choice
    return float(mean(at.trainable_params, np.array([at.steps.value]))[1, 0] - FLOOR - answer.forgetting.value)


def holds(answer: Answer) -> bool:
    """Whether the band covers the true forgetting at the recommended run."""
    true = answer.forgetting.value + error(answer)
    return bool(answer.forgetting.low <= true <= answer.forgetting.high)


def grids(number: int, seed: int, shared: float) -> dict[float, Answer | None]:
    """The answers of one grid for all budgets."""
    table = rows(number, seed, GRID, int(STEPS[-1]), shared=shared)
    fit, runs = fit_study(table)["d"]["shifted_power"], finished(table)
    return {budget: answer_of(fit, asked(budget, 0.0), runs) for budget in BUDGETS}


def asked(budget: float, tolerance: float) -> Asked:
    """The task of a session."""
    return Asked(budget, tolerance, RANKS, tuple(int(step) for step in STEPS))


def part_pilot(studies: int, seed: int) -> None:
    """Print, for each design and budget, the steps of sessions, the errors of plans and the coverage of bands."""
    columns = ["noise", "budget", "grid's half width, %", "its error, %", "holds, %", "steps, % of the grid's (range)"]
    columns += ["at most half", "runs", "error, %", "holds, %", "ended within, %"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for design, shared in SHARED.items():
        full = [grids(number, seed, shared) for number in range(studies)]
        for budget in BUDGETS:
            known = [answer for one in full if (answer := one[budget]) is not None]
            width = float(np.median([answer.half_width for answer in known]))
            found = [session(number, seed, asked(budget, width), shared=shared) for number in range(studies)]
            cells = [design, f"{budget}", f"{100 * width:.1f}", *_quality(known, budget), *_cost(found)]
            ended = np.array([reason == "tolerance" for reason, *_ in found], dtype=float)
            cells += [*_quality([answer for _, answer, *_ in found if answer is not None], budget), _share(ended)]
            print(f"| {' | '.join(cells)} |", flush=True)


def _quality(answers: list[Answer], budget: float) -> list[str]:
    """Root mean square error as a share of the budget, and coverage."""
    errors = np.array([error(answer) for answer in answers]) / budget
    return [f"{100 * np.sqrt(np.mean(errors**2)):.1f}", _share(np.array([holds(one) for one in answers], dtype=float))]


def _cost(found: list[tuple[str, Answer | None, float, int]]) -> list[str]:
    share = np.array([spent for _, _, spent, _ in found]) / (len(GRID) * STEPS[-1])
    middle = f"{100 * np.median(share):.0f} ({100 * share.min():.0f} to {100 * share.max():.0f})"
    return [middle, f"{(share <= 0.5).sum()} of {len(share)}", f"{np.median([runs for *_, runs in found]):.0f}"]


def _share(values: np.ndarray) -> str:
    return f"{100 * values.mean():.1f} ± {100 * values.std() / np.sqrt(values.size):.1f}"

"""Savings of a pilot and coverage of its bands: simulated sessions against full grids, by `--part pilot`.

Truth and noise are those of `coverage.py`, design `ar`. A full grid has four ranks and three seeds, all runs with 260
steps. Its plan for a budget has a band of forgetting at the recommended run; the pilot's tolerance is that band's half
width. Compared are the steps of all runs, and how often each band covers the true forgetting at its recommended run.
The pilot checks its band after each run and ends when it is narrow, which might favour bands that are narrow by chance.
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
MOST = 24
"""Number of runs after which a session is given up."""


def rows(number: int, seed: int, runs: list[tuple[int, int]], last: int) -> pd.DataFrame:
    """The table of the given runs; the noise of a run is always the same."""
    parts = []
    for rank, one in runs:
        losses = mean(rank * PER_RANK, STEPS) + noise(
            np.random.default_rng([seed, number, rank, one]), STEPS, heavy=False
        )
        columns = {"dataset": "d", "run_id": f"{rank}-{one}", "status": "done", "rank": rank, "seed": one}
        columns |= {"trainable_params": rank * PER_RANK, "step": STEPS, "measure_start": int(STEPS[0])}
        columns |= dict(zip(OUTPUTS, losses, strict=True)) | {"forgetting_floor": FLOOR}
        columns |= {"forgetting": losses[1] - FLOOR, "train_tokens": STEPS * 1000}
        columns |= {"train_seconds": STEPS * 1.0, "measure_seconds": 0.0}
        parts.append(pd.DataFrame(columns))
    made = pd.concat(parts)
    return made[made["step"] <= last].reset_index(drop=True)


def session(number: int, seed: int, asked: Asked) -> tuple[str, Answer | None, float, int]:
    """Why a session ended, its answer, the steps of all runs, and their number."""
    runs: list[tuple[int, int]] = []
    last, spent = 0, 0.0
    while True:
        table = rows(number, seed, runs, last) if runs else pd.DataFrame()
        following, answer = decide(table, asked, State(last, 1e9))
        if not isinstance(following, Next):
            return following.reason, answer, spent, len(runs)
        if len(runs) >= MOST:
            return "given up", answer, spent, len(runs)
        spent += len(runs) * (following.steps - last)
        last = following.steps
        if following.rank is not None and following.seed is not None:
            runs.append((following.rank, following.seed))
            spent += last


def holds(answer: Answer) -> bool:
    """Whether the band covers the true forgetting at the recommended run."""
    at = answer.choice
    true = mean(at.trainable_params, np.array([at.steps.value]))[1, 0] - FLOOR
    return bool(answer.forgetting.low <= true <= answer.forgetting.high)


def part_pilot(studies: int, seed: int) -> None:
    """Print, for each budget, the steps of sessions and the coverage of their bands."""
    columns = ["budget", "half width, %", "steps, % of the grid's (nine in ten below)", "runs", "pilot holds, %"]
    print(f"| {' | '.join([*columns, 'grid holds, %', 'ended within, %'])} |")
    print("|---|---|---|---|---|---|---|")
    for budget in BUDGETS:
        found = []
        for number in range(studies):
            asked = Asked(budget, 0.0, RANKS, tuple(int(step) for step in STEPS))
            table = rows(number, seed, GRID, int(STEPS[-1]))
            fit = fit_study(table)["d"]["shifted_power"]
            grid = answer_of(fit, asked, finished(table))
            if grid is None:
                continue
            reason, answer, spent, runs = session(number, seed, Asked(budget, grid.half_width, RANKS, asked.steps))
            share = spent / (len(GRID) * STEPS[-1])
            held = answer is not None and holds(answer)
            found.append((grid.half_width, share, runs, held, holds(grid), reason == "tolerance"))
        width, share, runs, held, grid_held, ended = (np.array(part, dtype=float) for part in zip(*found, strict=True))
        cells = [f"{budget}", f"{100 * np.median(width):.1f}"]
        cells.append(f"{100 * np.median(share):.0f} ({100 * np.quantile(share, 0.9):.0f})")
        cells += [f"{np.median(runs):.0f}", _share(held), _share(grid_held), _share(ended)]
        print(f"| {' | '.join(cells)} |", flush=True)


def _share(values: np.ndarray) -> str:
    return f"{100 * values.mean():.1f} ± {100 * values.std() / np.sqrt(values.size):.1f}"

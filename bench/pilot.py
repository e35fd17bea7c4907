"""Savings of a pilot and coverage of its bands: simulated sessions against full grids, by `--part pilot`.

Truth and noise are those of `coverage.py`, design `ar`; in the design `seeds`, a third of the noise's variance is shared
by runs of one seed, about as much as in the miniature's runs (0.32 over its two sets and 11 seeds). A full grid has four
ranks and three seeds, all runs with 260 steps. Its plan for a budget has a band of forgetting at the recommended run;
the pilot's tolerance is that band's half width. Compared are the steps of all runs (also with a grid whose runs are
only a tenth longer than its plan), the error of the plans, and how often each band covers the true forgetting at its
recommended run. The pilot checks its band after each run and ends when it is narrow, which might favour bands that are
narrow by chance.
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


def session(number: int, seed: int, asked: Asked, *, shared: float = 0.0) -> tuple[str, Answer | None, float, int]:
    """Why a session ended, its answer, the steps of all runs, and their number."""
    runs: list[tuple[int, int]] = []
    last, spent = 0, 0.0
    while True:
        table = rows(number, seed, runs, last, shared=shared) if runs else pd.DataFrame()
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


def error(answer: Answer) -> float:
    """How far the true forgetting at the recommended run is from the budget, in nats."""
    at = answer.choice
    return float(mean(at.trainable_params, np.array([at.steps.value]))[1, 0] - FLOOR - answer.forgetting.value)


def holds(answer: Answer) -> bool:
    """Whether the band covers the true forgetting at the recommended run."""
    true = answer.forgetting.value + error(answer)
    return bool(answer.forgetting.low <= true <= answer.forgetting.high)


def compare(number: int, seed: int, budget: float, shared: float) -> dict[str, float] | None:
    """A session against a grid; None if the grid has no plan."""
    steps = tuple(int(step) for step in STEPS)
    table = rows(number, seed, GRID, steps[-1], shared=shared)
    fit = fit_study(table)["d"]["shifted_power"]
    grid = answer_of(fit, Asked(budget, 0.0, RANKS, steps), finished(table))
    if grid is None:
        return None
    asked = Asked(budget, grid.half_width, RANKS, steps)
    reason, answer, spent, runs = session(number, seed, asked, shared=shared)
    needed = min(asked.at_least(1.1 * grid.choice.steps.value), steps[-1])
    return {
        "width": grid.half_width,
        "share": spent / (len(GRID) * steps[-1]),
        "of short": spent / (len(GRID) * needed),
        "runs": runs,
        "error": np.nan if answer is None else error(answer) / budget,
        "grid error": error(grid) / budget,
        "holds": answer is not None and holds(answer),
        "grid holds": holds(grid),
        "ended": reason == "tolerance",
    }


def part_pilot(studies: int, seed: int) -> None:
    """Print, for each design and budget, the steps of sessions, the errors of plans and the coverage of bands."""
    columns = ["noise", "budget", "grid's half width, %", "steps, % of the grid's (range)", "at most half"]
    columns += [
        "% of a grid as short as its plan",
        "runs",
        "error, %",
        "grid's",
        "holds, %",
        "grid's",
        "ended within, %",
    ]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for design, shared in SHARED.items():
        for budget in BUDGETS:
            found = [compare(number, seed, budget, shared) for number in range(studies)]
            print(f"| {design} | {budget} | {_cells(pd.DataFrame([one for one in found if one]))} |", flush=True)


def _cells(found: pd.DataFrame) -> str:
    middle = found.median()
    share = 100 * found["share"]
    cells = [f"{100 * middle['width']:.1f}", f"{share.median():.0f} ({share.min():.0f} to {share.max():.0f})"]
    cells += [f"{(found['share'] <= 0.5).sum()} of {len(found)}", f"{100 * middle['of short']:.0f}"]
    cells += [
        f"{middle['runs']:.0f}",
        *(f"{100 * np.sqrt((found[n] ** 2).mean()):.1f}" for n in ("error", "grid error")),
    ]
    return " | ".join([*cells, *(_share(found[name].to_numpy(float)) for name in ("holds", "grid holds", "ended"))])


def _share(values: np.ndarray) -> str:
    return f"{100 * values.mean():.1f} ± {100 * values.std() / np.sqrt(values.size):.1f}"

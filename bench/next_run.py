"""Whether `--next-run` pays: the promised and the realised effect of one more run, in simulated studies.

Studies of eight runs (`coverage.py`, design `ar`), with five questions inside the measured range: the fine-tuning loss
at which a rank reaches a level of forgetting. For each candidate rank, a further run is simulated several times and the
law is fitted again. Realised is the decrease of the answer's root mean square error against the truth, over all
studies; promised is the narrowing that each study's own fit predicts.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from coverage import OUTPUTS, PER_RANK, STEPS, Array, mean, noise, study
from forgetting.analysis.fit import Fit, fit_law
from forgetting.analysis.fit.data import read_data
from forgetting.analysis.fit.objective import Objective
from forgetting.analysis.fit.solver import Problem, minimise
from forgetting.analysis.laws import LAWS
from forgetting.analysis.plan import next_runs, plan_budget
from forgetting.analysis.plan.surface import surface_of
from forgetting.errors import ForgettingError

QUESTIONS = ((256, 0.82), (256, 0.90), (8, 0.84), (64, 0.88), (16, 0.86))
"""Rank and level of the forgetting loss."""
CANDIDATES = (8, 16, 32, 64, 128, 256)
REPEATS = 3
HELD, ASKED = "forgetting_loss", "finetune_loss"


def truth(rank: int, level: float) -> float:
    """The fine-tuning loss at which the true surface reaches the level, to 1e-6 nats."""
    steps = np.geomspace(5, 5000, 200_000)
    losses = mean(rank * PER_RANK, steps)
    return float(losses[0, int(np.argmax(losses[1] > level))])


def answers(fit: Fit, theta: Array) -> Array:
    """[S, Q] Answers for [S, K] parameters in the fit's internal coordinates."""
    surface = surface_of(fit)
    made = []
    for rank, level in QUESTIONS:
        steps = surface.steps_at(theta, rank * PER_RANK, HELD, level)
        made.append(surface.loss_at(theta, rank * PER_RANK, steps, ASKED))
    return np.stack(made, axis=1)


def refits(fit: Fit, table: dict[str, list[float]], rank: int, rng: np.random.Generator) -> Array:
    """[REPEATS, K] Parameters refitted with a further run of this rank, simulated REPEATS times."""
    run = {"run_id": -1.0, "rank": rank, "trainable_params": rank * PER_RANK}
    more = {name: [run[name]] * STEPS.size for name in run} | {"step": STEPS.tolist()}
    more |= {output: [1.0] * STEPS.size for output in OUTPUTS}
    data = read_data(LAWS.find("shifted_power"), {name: [*table[name], *more[name]] for name in table})
    law, theta, _ = fit.model()
    y = np.repeat(data.y[None], REPEATS, axis=0)
    for each in y:
        each[:, -STEPS.size :] = mean(rank * PER_RANK, STEPS) + noise(rng, STEPS, heavy=False)
    problem = Problem(law, data.x, Objective())
    start = np.repeat(theta[None], REPEATS, axis=0)
    flat = y.reshape(REPEATS, -1)
    return minimise(problem, start, flat, np.ones((1, flat.shape[1])), max_iterations=100, tolerance=1e-6).theta


def one(number: int, seed: int) -> tuple[Array, Array, Array, Array] | None:
    """A study's answers [Q] and [C, REPEATS, Q] with a further run, its promises [Q, C] and errors before [Q]."""
    rng = np.random.default_rng([seed, number])
    table = study(rng, "ar")
    fit = fit_law("shifted_power", table, bootstrap=0, starts=8)
    promised, error = np.empty((len(QUESTIONS), len(CANDIDATES))), np.empty(len(QUESTIONS))
    for q, (rank, level) in enumerate(QUESTIONS):
        plan = plan_budget(fit, level, ranks=[rank])
        runs = {r.rank: r for r in next_runs(fit, plan, [(c, c * PER_RANK) for c in CANDIDATES], max_steps=260)}
        promised[q], error[q] = [runs[c].narrowing for c in CANDIDATES], runs[CANDIDATES[0]].se_before
    after = np.stack([answers(fit, refits(fit, table, rank, rng)) for rank in CANDIDATES])
    return answers(fit, fit.model()[1][None])[0], after, promised, error


def realised(before: Array, after: Array) -> Array:
    """[Q, C] Decrease of the root mean square from [S, Q] errors to [S, C, REPEATS, Q] errors."""
    return (1 - np.sqrt(np.mean(after**2, axis=(0, 2))) / np.sqrt(np.mean(before**2, axis=0))).T


def part_next_run(studies: int, seed: int) -> None:
    """Print promised and realised narrowing, and how well they agree."""
    found = []
    for number in range(studies):
        try:
            made = one(number, seed)
        except ForgettingError:
            continue
        if all(np.isfinite(part).all() for part in made):
            found.append(made)
    before, after, promised, error = (np.stack(part) for part in zip(*found, strict=True))
    true = np.array([truth(*question) for question in QUESTIONS])
    limit = np.quantile(
        np.abs(before - true), 0.98, axis=0
    )  # a single diverging surface would dominate the mean square
    before, after = (np.clip(errors - true, -limit, limit) for errors in (before, after))
    rng, count = np.random.default_rng(0), len(before)
    draws = []
    for _ in range(200):
        at = rng.integers(0, count, count)
        draws.append(realised(before[at], after[at]))
    real, spread = realised(before, after), np.std(draws, axis=0)
    ratio = [np.mean(error**2, axis=0) / np.mean(before**2, axis=0)]
    ratio.append(np.mean((error[:, :, None] * (1 - promised)) ** 2, axis=(0, 2)) / np.mean(after**2, axis=(0, 1, 2)))
    print(f"next run: {count} of {studies} studies of 8 runs; candidates of ranks {', '.join(map(str, CANDIDATES))}")
    print("| answer | promised narrowing, % | realised, % | promised / realised error, now | with one run more |")
    print("|---|---|---|---|---|")
    for q, (rank, level) in enumerate(QUESTIONS):
        narrowings = ", ".join(f"{100 * p:.0f}" for p in promised[:, q].mean(axis=0))
        got = ", ".join(f"{100 * r:.0f} ± {100 * s:.0f}" for r, s in zip(real[q], spread[q], strict=True))
        print(
            f"| rank {rank}, {level:.2f} | {narrowings} | {got} | {ratio[0][q] ** 0.5:.2f} | {ratio[1][q] ** 0.5:.2f} |"
        )
    pooled = [spearmanr(promised.mean(axis=0).ravel(), got.ravel()).statistic for got in (real, *draws)]
    print(f"rank correlation of promised and realised, all questions: {pooled[0]:.2f} ± {np.std(pooled[1:]):.2f}")
    each = [spearmanr(made.ravel(), real.ravel()).statistic for made in promised]
    print(f"the same of one study's promises: mean {np.mean(each):.2f}, worst tenth below {np.quantile(each, 0.1):.2f}")
    best, first = real.max(axis=1), np.take_along_axis(real, promised.argmax(axis=2).T, axis=1).mean(axis=1)
    print(f"the first choice narrows by {100 * first.mean():.1f} %, the best by {100 * best.mean():.1f} %", flush=True)

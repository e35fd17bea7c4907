"""Which run to measure next: the one that would narrow the answer most.

Bayesian experimental design with the fit's bootstrap draws as the prior: for a candidate's measurements z and the
answer q, the variance of q given z is Var(q) - C_qz (C_zz + R)^-1 C_zq (Chaloner & Verdinelli 1995,
doi:10.1214/ss/1177009939), with R the noise of one run: an offset that its steps share, and noise of each step, as the
fit's residuals show them. To first order this is the optimal design on the law's gradient; draws need no linearisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forgetting.analysis.fit import Fit
from forgetting.analysis.laws.base import Array
from forgetting.analysis.plan.result import NextRun, Plan
from forgetting.analysis.plan.surface import Surface, need_surface, surface_of
from forgetting.errors import UsageError

POINTS = 8  # measured steps of a candidate, from the smallest measured step to its last


def next_runs(
    fit: Fit,
    plan: Plan,
    candidates: Sequence[tuple[float | None, float]],
    *,
    max_steps: float,
) -> list[NextRun]:
    """Candidates, best first, by how much they narrow the loss at the plan's best choice.

    Args:
        fit: a `shifted_power` law with intervals.
        plan: its `best` choice is the answer to narrow.
        candidates: ranks (or None) and trainable parameters that could be run.
        max_steps: what one run may cost.

    Raises:
        UsageError: a fit without intervals, a plan without an answer, or fewer steps than were ever measured.
    """
    need_surface(fit)
    surface = surface_of(fit)
    draws = surface.draws
    noise = fit.diagnostics.get("run_noise")
    if len(draws) < 20 or noise is None:
        raise UsageError(
            "next_run (--next-run) needs a law fitted with intervals (20 draws or more), and this one has none"
        )
    if plan.best is None:
        raise UsageError("next_run (--next-run) needs an answer to narrow, and no choice reaches this plan's level")
    first = fit.measured_range["step"][0]
    if max_steps <= first:
        raise UsageError(f"runs of {max_steps:g} steps end before the first measured step, {first:g}")
    other = "finetune_loss" if plan.output == "forgetting_loss" else "forgetting_loss"
    params = plan.best.trainable_params
    answer = surface.loss_at(draws, params, surface.steps_at(draws, params, plan.output, plan.level), other)
    scaled = _bounded(answer) * fit.widen
    out = [_judge(fit, surface, scaled, noise, rank, p, first, max_steps) for rank, p in candidates]
    return sorted(out, key=lambda run: run.se_after)


def _bounded(values: Array) -> Array:
    """[B, ...] draws around their median, no further than their 1st and 99th percentile.

    A draw whose surface runs away would decide a variance alone; one that is not finite counts as the median.
    """
    kept = np.where(np.isfinite(values), values, np.nan)
    low, middle, high = np.nanquantile(kept, [0.01, 0.5, 0.99], axis=0)
    around = np.clip(kept, low, high) - middle
    return np.where(np.isnan(around), 0.0, around)


def _judge(
    fit: Fit,
    surface: Surface,
    answer: Array,
    noise: dict[str, dict[str, float]],
    rank: float | None,
    params: float,
    first: float,
    steps: float,
) -> NextRun:
    grid = np.geomspace(first, steps, POINTS)
    x = {"trainable_params": np.full(POINTS, params), "step": grid}
    draws = surface.draws
    values = surface.law.values(draws, x)
    seen = _bounded(values).reshape(len(draws), -1) * fit.widen
    error = np.zeros((seen.shape[1], seen.shape[1]))
    for o, name in enumerate(surface.law.outputs):
        block = slice(o * POINTS, (o + 1) * POINTS)
        error[block, block] = noise[name]["between"] ** 2 + np.eye(POINTS) * (noise[name]["within"] ** 2 + 1e-12)
    count = len(draws) - 1
    cross = seen.T @ answer / count
    before = float(answer @ answer / count)
    after = before - float(cross @ np.linalg.solve(seen.T @ seen / count + error, cross))
    se_before, se_after = np.sqrt(before), np.sqrt(max(after, 0.0))
    narrowing = 1 - se_after / se_before if se_before > 0 else 0.0
    return NextRun(rank, params, float(steps), float(se_before), float(se_after), float(narrowing))

"""Finds the run to measure next: the one that would narrow the answer most.

Inside the measured range, this compares the answer's variance in a least-squares fit with and without the candidate's
measurements, to first order in the law's parameters (a c-optimal design: Atkinson, Donev & Tobias 2007). The noise is
estimated from the fit's residuals: an offset shared by the steps of a run, and noise per step. Outside the range, this
compares the answer's variance over the draws of all laws in the band with the part that remains given the candidate's
measurements, which also distinguish these laws (Chaloner & Verdinelli 1995, doi:10.1214/ss/1177009939).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forgetting.analysis.fit import Fit
from forgetting.analysis.fit.information import Information, derivatives
from forgetting.analysis.fit.objective import LOGARITHMIC, Objective
from forgetting.analysis.fit.rivals import own_share
from forgetting.analysis.fit.solver import Problem, to_theta, to_z
from forgetting.analysis.laws.base import Array
from forgetting.analysis.plan.result import NextRun, Plan
from forgetting.analysis.plan.surface import Surface, need_surface, surface_of
from forgetting.errors import UsageError

MOST_POINTS = 200
"""Most measurements assumed for a candidate."""
STEP = 1e-5  # step of finite differences, in fitted coordinates


@dataclass(frozen=True)
class Noise:
    """Variances by output: of a run's offset, and of a row around it."""

    offset: list[float]
    within: list[float]

    def covariance(self, points: int) -> Array:
        """[O * points, O * points] covariance of one run's measurements."""
        out = np.zeros((len(self.offset) * points,) * 2)
        for o, (offset, within) in enumerate(zip(self.offset, self.within, strict=True)):
            block = slice(o * points, (o + 1) * points)
            out[block, block] = offset + np.eye(points) * (within + 1e-12)
        return out


@dataclass(frozen=True)
class _Question:
    """The answer to narrow: a loss at the plan's best choice.

    Attributes:
        params: trainable parameters of the choice.
        held, level: the loss that is held, and its value in nats/token.
        asked: the other loss, which is the answer.
        outside: whether the choice is outside the measured range.
    """

    params: float
    held: str
    level: float
    asked: str
    outside: bool

    def answer(self, surface: Surface, theta: Array) -> Array:
        """[S] answers for [S, K] parameters of the law."""
        steps = surface.steps_at(theta, self.params, self.held, self.level)
        return surface.loss_at(theta, self.params, steps, self.asked)


def next_runs(
    fit: Fit,
    plan: Plan,
    candidates: Sequence[tuple[float | None, float]],
    *,
    max_steps: float,
) -> list[NextRun]:
    """Rank candidates by how much they would narrow the loss at the plan's best choice, best first.

    Args:
        fit: a `shifted_power` law fitted to runs.
        plan: the plan whose `best` choice is the answer to narrow.
        candidates: ranks (or None) and trainable parameters that could be run.
        max_steps: number of steps of a candidate; it is assumed to be measured as often as the fitted runs on average,
            at evenly spaced steps.

    Raises:
        UsageError: another law, one not fitted to several runs or without intervals, a plan without an answer or with
            unlimited steps, or `max_steps` that are not after the first measured step.
    """
    need_surface(fit)
    known = fit.information
    if known is None or fit.diagnostics.get("run_noise") is None or fit.n_runs < 2:
        raise UsageError(
            "next_run (--next-run) needs a law fitted to several runs, but this one was published, or stored by an "
            "older version; fit it again (`forgetting fit`)"
        )
    if not fit.draws:
        raise UsageError(
            "next_run (--next-run) says how much the answer's interval would shrink, but this law has no "
            f"intervals: {fit.no_bands}"
        )
    if plan.best is None:
        raise UsageError("next_run (--next-run) needs an answer to narrow, but no choice reaches this plan's level")
    first = fit.measured_range["step"][0]
    if max_steps <= first:
        raise UsageError(f"runs of {max_steps:g} steps end before the first measured step, {first:g}")
    other = "finetune_loss" if plan.output == "forgetting_loss" else "forgetting_loss"
    best = plan.best
    asked = _Question(best.trainable_params, plan.output, plan.level, other, best.extrapolated)
    grid = np.linspace(first, max_steps, int(np.clip(round(fit.n_points / fit.n_runs), 2, MOST_POINTS)))
    judge = _Judge(fit, surface_of(fit), known, asked)
    out = [judge.candidate(rank, params, grid) for rank, params in candidates]
    return sorted(out, key=lambda run: run.se_after)


class _Judge:
    """Evaluates candidates, from what they share."""

    def __init__(self, fit: Fit, surface: Surface, known: Information, asked: _Question) -> None:
        self.surface, self.known = surface, known
        self.theta = surface.theta[0]
        self.noise = noise_of(fit)
        problem = self._problem(asked.params, np.array([1.0]))
        self.free = problem.movable(self.theta)
        self.direction = _direction(problem, surface, asked)
        if not np.isfinite(self.direction).all():
            raise UsageError("next_run (--next-run): the best choice needs more steps than a number can represent")
        self.answers = _drawn_answers(surface, asked) if asked.outside and fit.draws else None

    def _problem(self, params: float, steps: Array) -> Problem:
        x = {"trainable_params": np.full(len(steps), params), "step": steps}
        return Problem(self.surface.law, x, Objective())

    def variance(self, known: Information) -> float:
        return known.variance(self.direction, self.free, self.noise.offset, self.noise.within)

    def candidate(self, rank: float | None, params: float, steps: Array) -> NextRun:
        problem = self._problem(params, steps)
        if self.answers is None:
            before = self.variance(self.known)
            after = self.variance(self.known.plus(derivatives(problem, self.theta)))
        else:
            before, after = self._of_draws(self.answers, problem)
        se_before, se_after = float(np.sqrt(before)), float(np.sqrt(np.clip(after, 0.0, before)))
        narrowing = 1 - se_after / se_before if se_before > 0 else 0.0
        return NextRun(rank, params, float(steps[-1]), se_before, se_after, narrowing)

    def _of_draws(self, answers: Array, problem: Problem) -> tuple[float, float]:
        """The answer's variance over the laws' draws, and the part that remains given the candidate's measurements."""
        own = own_share(len(answers), self.surface.rivals)
        laws = [(self.surface.law, self.surface.draws[:own]), *((r.law, r.draws) for r in self.surface.rivals)]
        values = [law.values(draws, problem.x).reshape(len(draws), -1) for law, draws in laws if len(draws)]
        seen = _bounded(np.concatenate(values))
        count, points = len(answers), seen.shape[1] // len(self.noise.offset)
        cross = seen.T @ answers / count
        before = float(answers @ answers / count)
        told = cross @ np.linalg.solve(seen.T @ seen / count + self.noise.covariance(points), cross)
        return before, before - float(told)


def _bounded(values: Array) -> Array:
    """[B, ...] draws relative to their median, clipped to their 1st and 99th percentile.

    Otherwise a single draw with a diverging surface would dominate the variance. Draws that are not finite count as the
    median.
    """
    kept = np.where(np.isfinite(values), values, np.nan)
    low, middle, high = np.nanquantile(kept, [0.01, 0.5, 0.99], axis=0)
    around = np.clip(kept, low, high) - middle
    return np.where(np.isnan(around), 0.0, around)


def noise_of(fit: Fit) -> Noise:
    """The noise of a fit's runs; the part of the scatter that the fit's flexibility hides is added to the offset."""
    parts = fit.diagnostics["run_noise"]
    whole = None if fit.objective == LOGARITHMIC else fit.diagnostics.get("scatter")
    offset, within = [], []
    for output in fit.law_object.outputs:
        inner, between = (parts[output][k] ** 2 for k in ("within", "between"))
        within.append(inner)
        offset.append(between if whole is None else max(whole[output] ** 2 - inner, between))
    return Noise(offset, within)


def _direction(problem: Problem, surface: Surface, asked: _Question) -> Array:
    """[K] derivatives of the answer with respect to the fitted coordinates."""
    log = problem.log_mask(False)
    z = to_z(surface.theta[0], log)
    moves = STEP * np.eye(z.size)
    ends = [asked.answer(surface, to_theta(z + sign * moves, log)) for sign in (1, -1)]
    return np.asarray((ends[0] - ends[1]) / (2 * STEP))


def _drawn_answers(surface: Surface, asked: _Question) -> Array:
    """[B] draws of the answer from the law and its rivals, by their shares, relative to their median.

    A rival may never reach the level. Its answer is therefore the law's, corrected to first order by the difference of
    their losses there.
    """
    own = own_share(len(surface.draws), surface.rivals)
    steps = float(surface.steps_at(surface.theta, asked.params, asked.held, asked.level)[0])
    near = steps * np.exp(STEP * np.array([0.0, -1.0, 1.0]))
    x = {"trainable_params": np.full(3, asked.params), "step": near}
    held, other = (surface.law.outputs.index(name) for name in (asked.held, asked.asked))
    values = surface.law.values(surface.theta, x)[0]
    exchange = (values[other, 2] - values[other, 1]) / (values[held, 2] - values[held, 1])
    answers = [asked.answer(surface, surface.draws[:own])]
    for rival in surface.rivals:
        differ = rival.law.values(rival.draws, x)[:, :, 0] - values[:, 0]
        answers.append(values[other, 0] + differ[:, other] - exchange * differ[:, held])
    return _bounded(np.concatenate(answers))

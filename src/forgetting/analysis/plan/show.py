"""A plan as text and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from forgetting.analysis.fit import Estimate
from forgetting.analysis.fit.show import aligned, number
from forgetting.analysis.plan.frontier import Choice, Plan
from forgetting.analysis.plan.next_run import NextRun


def plan_dict(label: str, plan: Plan, runs: Sequence[NextRun]) -> dict[str, Any]:
    """Plain data for JSON; steps that are infinite are null, with `unlimited` true."""

    def choice(c: Choice | None) -> dict[str, Any] | None:
        return None if c is None else {**asdict(c), "unlimited": not np.isfinite(c.steps.value)}

    out: dict[str, Any] = {
        "law": label,
        "held": plan.output,
        "level": plan.level,
        "floor": plan.floor,
        "frontier": [choice(c) for c in plan.frontier],
        "best": choice(plan.best),
        "best_measured": choice(plan.best_measured),
        "sentences": list(plan.sentences),
    }
    return out | ({"next_runs": [asdict(run) for run in runs]} if runs else {})


def plan_text(label: str, plan: Plan, runs: Sequence[NextRun]) -> str:
    """For a terminal."""
    held = plan.output.replace("_", " ")
    lines = [f"{label}: {held} held at {number(plan.level)} nats/token" + _floor(plan)]
    head = ("rank", "trainable params", "steps", "finetune loss", "forgetting loss", "tokens", "FLOPs", "")
    rows = [head]
    for c in plan.frontier:
        mark = " *" if c is plan.best else ""
        cost = (_short(c.tokens), _short(c.flops))
        note = ("outside the measured range" if c.extrapolated else "") + mark
        rank = "-" if c.rank is None else f"{c.rank:g}"
        losses = (_span(c.finetune_loss), _span(c.forgetting_loss))
        rows.append((rank, f"{c.trainable_params:,.0f}", _steps(c.steps), *losses, *cost, note))
    if plan.frontier:
        lines += ["", aligned(rows), "* best"]
    lines += ["", *plan.sentences]
    if runs:
        lines += ["", "next run, by how much of the answer's interval would go away:"]
        lines += [f"  {_name(r)} for {r.steps:g} steps: {r.narrowing:.0%} narrower" for r in runs]
    return "\n".join(lines)


def _floor(plan: Plan) -> str:
    return "" if plan.floor is None else f" (base model: {number(plan.floor)})"


def _name(run: NextRun) -> str:
    return f"rank {run.rank:g}" if run.rank is not None else f"{run.trainable_params:,.0f} parameters"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _span(e: Estimate) -> str:
    known = np.isfinite(e.low) and np.isfinite(e.high)
    return number(e.value) + (f" ({number(e.low)} to {number(e.high)})" if known else "")


def _steps(e: Estimate) -> str:
    if not np.isfinite(e.value):
        return "unlimited"
    known = np.isfinite(e.low) and np.isfinite(e.high)
    return f"{e.value:,.0f}" + (f" ({e.low:,.0f} to {e.high:,.0f})" if known else "")

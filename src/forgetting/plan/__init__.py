"""Plans: what to run for a budget of forgetting, what a target costs, and which run to measure next."""

from __future__ import annotations

from forgetting.mirror import make_callable
from forgetting.plan.frontier import Choice, Cost, Plan, plan_budget, plan_target
from forgetting.plan.next_run import NextRun, next_runs
from forgetting.plan.source import load_laws

__all__ = ["Choice", "Cost", "NextRun", "Plan", "load_laws", "next_runs", "plan_budget", "plan_target"]

make_callable(__name__)

"""Plans: rank and steps for a budget of forgetting or a target loss, and which run to measure next."""

from __future__ import annotations

from forgetting.analysis.plan.cost import Cost, costs_of
from forgetting.analysis.plan.frontier import plan_budget, plan_target
from forgetting.analysis.plan.next_run import next_runs
from forgetting.analysis.plan.replay import plan_replay
from forgetting.analysis.plan.result import Choice, NextRun, Plan, Plans, ReplayPlan
from forgetting.analysis.plan.source import load_laws

__all__ = [
    "Choice",
    "Cost",
    "NextRun",
    "Plan",
    "Plans",
    "ReplayPlan",
    "costs_of",
    "load_laws",
    "next_runs",
    "plan_budget",
    "plan_replay",
    "plan_target",
]

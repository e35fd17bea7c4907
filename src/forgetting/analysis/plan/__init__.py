"""Plans: rank and steps for a budget of forgetting or a target loss, and which run to measure next."""

from __future__ import annotations

from forgetting.analysis.plan.cost import Cost, costs_of
from forgetting.analysis.plan.frontier import plan_budget, plan_target
from forgetting.analysis.plan.mitigated import plan_mitigated
from forgetting.analysis.plan.next_run import next_runs
from forgetting.analysis.plan.result import Choice, MitigatedPlan, NextRun, Plan, Plans
from forgetting.analysis.plan.source import load_laws

__all__ = [
    "Choice",
    "Cost",
    "MitigatedPlan",
    "NextRun",
    "Plan",
    "Plans",
    "costs_of",
    "load_laws",
    "next_runs",
    "plan_budget",
    "plan_mitigated",
    "plan_target",
]

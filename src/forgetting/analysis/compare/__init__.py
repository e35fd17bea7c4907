"""Does a method or mitigation forget less at equal fine-tuning loss, or is it equivalent to stopping earlier?"""

from __future__ import annotations

from forgetting.analysis.compare.beyond import Beyond, beyond
from forgetting.analysis.compare.contest import Contender, Contest, contest
from forgetting.analysis.compare.estimate import Estimate
from forgetting.analysis.compare.result import Comparison, compare_tables
from forgetting.analysis.compare.source import choose_axis, read_source
from forgetting.analysis.compare.study import any_tables, open_study, study_tables

__all__ = [
    "Beyond",
    "Comparison",
    "Contender",
    "Contest",
    "Estimate",
    "any_tables",
    "beyond",
    "choose_axis",
    "compare_tables",
    "contest",
    "open_study",
    "read_source",
    "study_tables",
]

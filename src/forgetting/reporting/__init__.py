"""Results as HTML pages that need nothing else.

A study's report, with its answer in words, the paper's figures, laws, runs and setup; the pages of a measurement and of
an evaluation.
"""

from __future__ import annotations

from forgetting.reporting.render import render_study, write_study_report

__all__ = ["render_study", "write_study_report"]

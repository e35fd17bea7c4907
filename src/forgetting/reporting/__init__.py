"""Results as self-contained HTML pages.

A study's report has the answer in words, the paper's figures, laws, runs and setup. Measurements and evaluations have
pages of their own.
"""

from __future__ import annotations

from forgetting.reporting.render import render_study, write_study_report

__all__ = ["render_study", "write_study_report"]

"""One self-contained HTML page that shows a study: its answer in words, the paper's figures, laws, runs and setup."""

from __future__ import annotations

from forgetting.reporting.render import render_study, write_study_report

__all__ = ["render_study", "write_study_report"]

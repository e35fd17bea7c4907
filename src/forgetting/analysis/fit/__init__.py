"""Fits a law to a table: estimates with intervals, warnings and predictions."""

from __future__ import annotations

from forgetting.analysis.fit.engine import fit_from_published, fit_law
from forgetting.analysis.fit.estimate import Estimate, Prediction
from forgetting.analysis.fit.groups import GroupedFits, fit_groups
from forgetting.analysis.fit.result import Fit, load_fits, save_fits
from forgetting.analysis.fit.select import Extrapolation, extrapolation_tests, r2_by, rank_laws
from forgetting.analysis.fit.study import FITTED, LEAST_ROWS, fit_study, unfit

__all__ = [
    "FITTED",
    "LEAST_ROWS",
    "Estimate",
    "Extrapolation",
    "Fit",
    "GroupedFits",
    "Prediction",
    "extrapolation_tests",
    "fit_from_published",
    "fit_groups",
    "fit_law",
    "fit_study",
    "load_fits",
    "r2_by",
    "rank_laws",
    "save_fits",
    "unfit",
]

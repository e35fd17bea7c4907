"""Analysis of the measurements, with numpy and scipy only.

Contains `laws` with their formulas and sources (docs/laws.md), `fit` with intervals and warnings, `plan` for a budget,
`compare` at equal fine-tuning loss (docs/compare.md), and readers for tables of runs from other tools.
"""

"""What the measurements mean, computed with numpy and scipy only.

`laws` with their formulas and sources (docs/laws.md), `fit` with intervals and warnings, `plan` for a budget,
`compare` at equal fine-tuning loss (docs/compare.md), and tables of runs from other tools.
"""

"""What the measurements say, by numpy and scipy alone.

`laws` with their formulas and sources (docs/laws.md), `fit` with intervals and warnings, `plan` for a budget,
`compare` at equal fine-tuning loss (docs/compare.md), and tables of runs from elsewhere.
"""

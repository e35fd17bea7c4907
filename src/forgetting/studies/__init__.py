"""Studies: running the grid of runs, and what follows from them.

Contains what the runs share, the execution and record of one run, the engines that execute many (docs/clusters.md),
the provenance of numbers, repeated runs, pilots, and a study's conclusions: fits and report.
"""

"""Studies: the grid of runs, and all that it takes to do it.

What runs share, one run done and recorded, the engines that do many (docs/clusters.md), where a number comes from, a
run repeated, and what a study concludes: fits and report.
"""

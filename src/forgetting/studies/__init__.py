"""Studies: the grid of runs, what they share, where they run, and what they conclude."""

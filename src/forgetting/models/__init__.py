"""Models and the processes that hold them.

Loading at a pinned revision, adapters and what lies under them, the pair of a tuned model and its base and whether the
two can be compared, the memory a run takes, and what the processes of one run agree on.
"""

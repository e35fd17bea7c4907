"""The study folder on disk.

Plain files that any number of processes may read and one process per run may write, and the measurements of all runs as
a table.
"""

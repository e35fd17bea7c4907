"""The study folder on disk, and its measurements as a table."""

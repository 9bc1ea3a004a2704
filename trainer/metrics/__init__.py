"""Metrics that are exact over the rows of all workers, a file per family."""

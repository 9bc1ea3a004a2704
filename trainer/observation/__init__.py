"""Monitoring of a run: log, progress display, TensorBoard and profiles."""

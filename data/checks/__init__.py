"""Checks of a dataset: its values, and what its labels allow to learn."""

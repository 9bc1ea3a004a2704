"""Prepares a dataset of one table from a declaration of its columns."""

"""Checks the labels of a dataset before training."""

"""Optimizers: pure update rules, applied to whole weights or to the rows of a table that a batch looks up."""

"""Optimizers: pure update rules, applied to whole weights or to the touched rows of a table."""

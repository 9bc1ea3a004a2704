"""Optimizers: pure update rules, and their application to whole weights or to the touched rows of a table."""

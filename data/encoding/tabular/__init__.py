"""Datasets that are tables of text: declared columns, read in blocks, split by row, encoded by one workflow."""

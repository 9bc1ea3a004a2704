"""Prepare datasets from text tables: declare columns, read in blocks, split by row, encode with one workflow."""

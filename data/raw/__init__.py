"""Reads raw files, decides what becomes of each row, and infers a first specification."""

"""Reads and writes datasets as CSV and parquet."""

"""Conversion between CSV, random rows and parquet: the readers, writers and checks behind the data tools."""

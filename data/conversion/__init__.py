"""Between CSV, random rows and parquet: the writers, readers and checks behind the data tools."""

"""Read parquet files into the batches of training and evaluation steps."""

"""From parquet files to the batches of a training step."""

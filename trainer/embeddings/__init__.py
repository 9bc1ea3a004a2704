"""Embedding tables: lookup, sharding, and the exchange of sparse gradients between workers."""

# Rows below which a table is replicated even under --shard_embeddings; with a width of 128 it takes less than 2 MB.
SMALLEST_SHARDED = 4096

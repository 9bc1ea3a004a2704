"""Embedding tables: lookup, sharding, and the exchange of sparse gradients between workers."""

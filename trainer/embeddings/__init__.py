"""Embedding tables: lookup, the gradients of touched rows, their way between workers, sharding."""

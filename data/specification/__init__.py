"""Reads, validates and writes feature specifications, and the embedding widths that go with them."""

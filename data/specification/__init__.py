"""The feature specification: read, checked, written; and the embedding widths that go with it."""

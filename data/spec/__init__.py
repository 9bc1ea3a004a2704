"""The feature specification: YAML, channels, shapes and values, embedding widths."""

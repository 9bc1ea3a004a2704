"""Encode raw values as ids and numbers: hashing, fitted encoders, NVTabular operators and shared `prepare` steps."""

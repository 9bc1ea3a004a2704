"""Encodes raw values: encoders, how they are fitted, and the NVTabular operators that apply them."""

"""Encodes raw values: vocabularies, scalers and the NVTabular workflows that apply them."""

"""MovieLens: prepare the published files as a dataset for `main.py`."""

"""MovieLens: from the publisher's files to a dataset for `main.py`."""

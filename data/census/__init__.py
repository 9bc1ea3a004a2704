"""Census-Income (KDD): prepare the published files as a dataset of two tasks."""

"""Census-Income (KDD): from the publisher's files to a dataset of two tasks."""

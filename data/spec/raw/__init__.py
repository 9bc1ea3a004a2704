"""Raw specifications: how raw files become the columns of a dataset."""

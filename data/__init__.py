"""Files, columns and rows: everything up to a batch. Knows nothing of models, flags or workers' transport."""

"""Files, columns and rows: everything up to a batch. Independent of models, flags and communication."""

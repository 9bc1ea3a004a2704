"""Training, evaluation and prediction of ranking models."""

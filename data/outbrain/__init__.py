"""Outbrain Click Prediction (Kaggle, 2016)."""

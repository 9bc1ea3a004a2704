"""Turns batches into a trained model."""

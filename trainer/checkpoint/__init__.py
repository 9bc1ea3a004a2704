"""Checkpoints, model folders, and what they record of a run."""

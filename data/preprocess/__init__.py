"""Turns raw files into datasets: stages rows, adds histories, fits and applies encoders, writes the result."""

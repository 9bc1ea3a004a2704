"""Looks through the labels of a dataset before it is trained on."""

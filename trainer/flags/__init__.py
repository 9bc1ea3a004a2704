"""The flags of main.py: definitions, parsing and defaults. Imports no TensorFlow."""

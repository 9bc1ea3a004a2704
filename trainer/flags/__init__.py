"""The flags of main.py: what there are, how they are read, where defaults come from. Imports no TensorFlow."""

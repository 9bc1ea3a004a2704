"""Where TensorFlow computes, and what is compiled there."""

import tensorflow as tf


def on_gpu() -> bool:
    """Whether this process computes on a GPU; under --cpu, runtime.prepare has hidden those that there are."""
    return bool(tf.config.get_visible_devices("GPU"))


def compiles_passes(xla: bool) -> bool:
    """Whether --xla compiles a forward pass, or a forward and backward pass, in one piece.

    On a GPU it does. On a CPU, XLA's own matrix products and random bits take several times as long as TensorFlow's.
    """
    return xla and on_gpu()

"""The device that TensorFlow computes on, and whether XLA is used there."""

import tensorflow as tf


def on_gpu() -> bool:
    """Returns whether this process computes on a GPU. With --cpu, `runtime.prepare` hides all GPUs."""
    return bool(tf.config.get_visible_devices("GPU"))


def compiles_passes(xla: bool) -> bool:
    """Returns whether the forward pass, or the forward and backward pass, is compiled with XLA as a whole.

    Only done on GPUs: on CPUs, XLA's matrix products and random number generation are several times slower than
    TensorFlow's.

    Args:
        xla: whether --xla is set.
    """
    return xla and on_gpu()

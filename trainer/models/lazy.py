"""TensorFlow and the layers, imported when they are first used.

A model's file also defines the model's flags, and flags are parsed before TensorFlow is imported, so that a mistake is
reported within a second. Such a file takes `layers` and `tf` from here, and begins with `from __future__ import
annotations`: evaluating an annotation such as tf.Tensor would import TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["layers", "tf"]


class _LazyModule:
    """A module that is imported when an attribute of it is first read."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


if TYPE_CHECKING:
    import tensorflow as tf

    from trainer.models import layers
else:
    layers, tf = _LazyModule("trainer.models.layers"), _LazyModule("tensorflow")

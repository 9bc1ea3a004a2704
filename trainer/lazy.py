"""TensorFlow, imported when it is first used.

Flags, tasks and the registries of models, loss weightings and optimizers are needed before TensorFlow is imported, so
that a mistake in the arguments is reported within a second. A file that is imported so early takes `tf` from here and
begins with `from __future__ import annotations`: evaluating an annotation such as tf.Tensor would import TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["LazyModule", "tf"]


class LazyModule:
    """A module that is imported when an attribute of it is first read."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


if TYPE_CHECKING:
    import tensorflow as tf
else:
    tf = LazyModule("tensorflow")

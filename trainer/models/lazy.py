"""The layers, imported when they are first used: a model's file is read for its flags before TensorFlow is imported."""

from typing import TYPE_CHECKING

from trainer.lazy import LazyModule

__all__ = ["layers"]

if TYPE_CHECKING:
    from trainer.models import layers
else:
    layers = LazyModule("trainer.models.layers")

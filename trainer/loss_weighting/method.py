"""Interface of the methods that combine several losses into one."""

from collections.abc import Sequence
from typing import Literal, Protocol

import tensorflow as tf

Wants = Literal["nothing", "last", "all"]


class LossWeighting(Protocol):
    """A method that combines the losses of several tasks."""

    @property
    def weights(self) -> dict[str, tf.Variable]:
        """Name -> float32 variable to train with the deep part."""

    @property
    def state(self) -> dict[str, tf.Variable]:
        """Name -> variable to checkpoint besides the trained ones."""

    @property
    def wants(self) -> Wants:
        """Shared weights whose gradients `combine` gets: the last kernel or all; with "nothing", it is not called."""

    def total(self, shares: tf.Tensor, weights: dict[str, tf.Tensor], factors: tf.Tensor, workers: int) -> tf.Tensor:
        """Computes this worker's share of the loss, scalar float32.

        Args:
            shares: [tasks] float32, this worker's shares of the mean losses.
            weights: values of the trained variables, with respect to which the loss is differentiated.
            factors: [tasks] float32, result of `factors`.
            workers: number of workers.
        """

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the tasks' factors in a step (from 1), [tasks] float32; they are not differentiated."""

    def combine(self, gradients: tf.Tensor, losses: tf.Tensor, step: tf.Tensor) -> tf.Tensor | None:
        """Processes the tasks' gradients when a step is applied.

        Args:
            gradients: [tasks, values] float32, gradient of every L_k over the global batch with respect to the shared
                weights that the method wants.
            losses: [tasks] float32, every L_k.
            step: scalar int32, counted from 1.

        Returns:
            [values] float32 to replace the gradient of the sum, or None to keep it.
        """

    def end_epoch(self, losses: Sequence[float]) -> None:
        """Records the mean loss of each task over the epoch, which is the same on every worker."""

"""What a way to make one loss of several has to offer."""

from collections.abc import Sequence
from typing import Literal, Protocol

import tensorflow as tf

Wants = Literal["nothing", "last", "all"]


class LossWeighting(Protocol):
    """One method."""

    @property
    def weights(self) -> dict[str, tf.Variable]:
        """Name -> float32 variable to be trained with the deep part."""

    @property
    def state(self) -> dict[str, tf.Variable]:
        """Name -> variable: what has to be saved besides the trained ones."""

    @property
    def wants(self) -> Wants:
        """Whether `combine` is to be called, and with the gradients of which shared weights."""

    def total(self, shares: tf.Tensor, weights: dict[str, tf.Tensor], factors: tf.Tensor, workers: int) -> tf.Tensor:
        """This worker's share of the loss, scalar float32.

        Args:
            shares: [tasks] float32, of the mean losses.
            weights: values of the trained variables, which the gradient is taken for.
            factors: [tasks] float32 from `factors`.
            workers: how many there are.
        """

    def factors(self, step: tf.Tensor) -> tf.Tensor:
        """The tasks' factors in a step (from 1), [tasks] float32; not differentiated."""

    def combine(self, gradients: tf.Tensor, losses: tf.Tensor, step: tf.Tensor) -> tf.Tensor | None:
        """Looks at the tasks' gradients when a step is applied.

        Args:
            gradients: [tasks, values] float32, of every L_k with respect to the shared weights that the method wants,
                over the global batch.
            losses: [tasks] float32, every L_k.
            step: scalar int32, from 1.

        Returns:
            [values] float32 to take the place of the sum's gradient, or None to leave that.
        """

    def end_epoch(self, losses: Sequence[float]) -> None:
        """Takes the mean loss of each task over the epoch, the same on every worker."""

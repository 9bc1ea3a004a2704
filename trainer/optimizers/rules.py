"""Update rules as pure functions of weight, gradient and slots.

A rule is element-wise, so that the same lines update a whole weight, a whole table, or just the
rows of a table that a batch touched.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import tensorflow as tf


class Rule(Protocol):
    """One optimizer."""

    @property
    def slots(self) -> dict[str, float]:
        """Name -> initial value of each accumulator, which has the weight's shape."""

    @property
    def decays(self) -> bool:
        """Whether slots change in steps in which the gradient is zero."""

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: dict[str, tf.Tensor], rate: tf.Tensor, gap: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The new weight and slots.

        Args:
            weight, gradient, slots: [..., width] float32.
            rate: learning rate, scalar float32.
            gap: steps since the last update, this one included, float32 and broadcastable to the weight; always 1
                for a weight that is updated in every step.
        """


@dataclass(frozen=True)
class RMSprop:
    """v <- rho v + (1 - rho) g^2;  w <- w - rate g / (sqrt(v) + epsilon).

    A row that no batch touched for a while has g = 0 there: w stays and v decays by rho a step, which
    rho ** gap makes up for. Updating touched rows only thus equals updating all rows in every step.

    Source: Tieleman and Hinton, "Neural Networks for Machine Learning", lecture 6.5, 2012; with the
    public recipe's rho and epsilon as defaults.
    """

    rho: float = 0.5
    epsilon: float = 1e-7
    decays: ClassVar[bool] = True

    @property
    def slots(self) -> dict[str, float]:
        """See Rule."""
        return {"mean_square": 0.0}

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: dict[str, tf.Tensor], rate: tf.Tensor, gap: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """See Rule."""
        mean_square = tf.pow(self.rho, gap) * slots["mean_square"] + (1.0 - self.rho) * tf.square(gradient)
        return weight - rate * gradient / (tf.sqrt(mean_square) + self.epsilon), {"mean_square": mean_square}


@dataclass(frozen=True)
class Ftrl:
    """Follow the regularised leader, with learning-rate power -1/2 and no regularisation.

    n' = n + g^2;  z <- z + g - (sqrt(n') - sqrt(n)) / rate * w;  w <- -z rate / sqrt(n')

    A zero gradient changes nothing as long as w = -z rate / sqrt(n), which holds for weights that start at zero:
    updating touched rows only is then exact.

    Source: McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, algorithm 1.
    """

    initial_accumulator: float = 0.1
    decays: ClassVar[bool] = False

    @property
    def slots(self) -> dict[str, float]:
        """See Rule."""
        return {"accumulator": self.initial_accumulator, "linear": 0.0}

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: dict[str, tf.Tensor], rate: tf.Tensor, gap: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """See Rule."""
        accumulator = slots["accumulator"] + tf.square(gradient)
        root = tf.sqrt(accumulator)
        linear = slots["linear"] + gradient - (root - tf.sqrt(slots["accumulator"])) / rate * weight
        return -linear * rate / root, {"accumulator": accumulator, "linear": linear}

"""Exponential moving averages of weights, which cost no more than the rows that a batch looks up."""

import math
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class MovingAverage:
    """The average of a weight over all steps, of which older ones count exponentially less.

    With momentum m, step t and the weight w_t after it, the accumulator a and the average are those of Adam's moments,
    including the correction of the start at 0:

        a_t = m a_(t-1) + (1 - m) w_t        average = a_t / (1 - m^t)

    A row that no batch looks up keeps its weight, so the steps since its last update are made up for at once: exactly,
    by a geometric series. An average therefore never costs work in proportion to the size of a table in a step.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 1992,
    for averages; the exponential form and its correction as in Kingma and Ba, "Adam", ICLR 2015, section 3.

    Attributes:
        momentum: share m of the accumulator that stays in every step, in (0, 1).
    """

    momentum: float

    def update(
        self, accumulator: tf.Tensor, before: tf.Tensor, after: tf.Tensor, elapsed: tf.Tensor | float
    ) -> tf.Tensor:
        """Return the accumulator after an update of the weight.

        Args:
            accumulator: the accumulator after the previous update, [..., width] float32.
            before, after: the weight before and after this update.
            elapsed: steps since the previous update, including this one, float32 and broadcastable to the weight.
        """
        kept, added = self._caught_up(elapsed - 1.0)
        return self.momentum * (kept * accumulator + added * before) + (1.0 - self.momentum) * after

    def value(self, accumulator: tf.Tensor, weight: tf.Tensor, unchanged: tf.Tensor | float, step: int) -> tf.Tensor:
        """Return the average after a step.

        Args:
            accumulator: the accumulator after the last update, [..., width] float32.
            weight: the weight since then.
            unchanged: steps since the last update, float32 and broadcastable to the weight.
            step: number of steps of the run, at least 1.
        """
        kept, added = self._caught_up(unchanged)
        return (kept * accumulator + added * weight) / -math.expm1(step * math.log(self.momentum))

    def _caught_up(self, steps: tf.Tensor | float) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the factors of accumulator and weight after so many steps without an update: m^n and 1 - m^n."""
        exponent = tf.convert_to_tensor(steps, tf.float32) * math.log(self.momentum)
        return tf.exp(exponent), -tf.math.expm1(exponent)

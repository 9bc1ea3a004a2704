"""Update rules as pure functions of weight, gradient and slots.

A rule is element-wise, so that the same lines update a whole weight, a whole table, or just the
rows of a table that a batch touched.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import tensorflow as tf

from trainer.flags.options import DeepOptimizer

Slots = dict[str, tf.Tensor]


class Rule(Protocol):
    """One optimizer."""

    @property
    def slots(self) -> dict[str, float]:
        """Name -> initial value of each accumulator, which has the weight's shape."""

    @property
    def decays(self) -> bool:
        """Whether slots change in steps in which the gradient is zero."""

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, gap: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """The new weight and slots.

        Args:
            weight, gradient, slots: [..., width] float32.
            rate: learning rate, scalar float32.
            gap: steps since the last update, this one included, float32 and broadcastable to the weight; always 1
                for a weight that is updated in every step.
            step: of the run, from 1, scalar float32.
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
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, gap: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
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
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, gap: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """See Rule."""
        accumulator = slots["accumulator"] + tf.square(gradient)
        root = tf.sqrt(accumulator)
        linear = slots["linear"] + gradient - (root - tf.sqrt(slots["accumulator"])) / rate * weight
        return -linear * rate / root, {"accumulator": accumulator, "linear": linear}


@dataclass(frozen=True)
class Adam:
    """m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w - rate_t m / (sqrt(v) + epsilon)

    with rate_t = rate sqrt(1 - b2^t) / (1 - b1^t). Lazy on tables: a row that no batch touched for a while gets its
    moments decayed as if its gradient had been 0, but the moves that dense Adam would have made meanwhile are
    left out.

    Source: Kingma and Ba, "Adam", ICLR 2015.
    """

    first: float = 0.9
    second: float = 0.999
    epsilon: float = 1e-7
    decays: ClassVar[bool] = True

    @property
    def slots(self) -> dict[str, float]:
        """See Rule."""
        return {"mean": 0.0, "mean_square": 0.0}

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, gap: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """See Rule."""
        mean = tf.pow(self.first, gap) * slots["mean"] + (1.0 - self.first) * gradient
        mean_square = tf.pow(self.second, gap) * slots["mean_square"] + (1.0 - self.second) * tf.square(gradient)
        corrected = rate * tf.sqrt(1.0 - tf.pow(self.second, step)) / (1.0 - tf.pow(self.first, step))
        moved = weight - corrected * mean / (tf.sqrt(mean_square) + self.epsilon)
        return moved, {"mean": mean, "mean_square": mean_square}


@dataclass(frozen=True)
class Adagrad:
    """n <- n + g^2;  w <- w - rate g / sqrt(n + epsilon). A zero gradient changes nothing: lazy equals dense.

    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 2011; start and epsilon as in Keras.
    """

    initial_accumulator: float = 0.1
    epsilon: float = 1e-7
    decays: ClassVar[bool] = False

    @property
    def slots(self) -> dict[str, float]:
        """See Rule."""
        return {"accumulator": self.initial_accumulator}

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, gap: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """See Rule."""
        accumulator = slots["accumulator"] + tf.square(gradient)
        return weight - rate * gradient / tf.sqrt(accumulator + self.epsilon), {"accumulator": accumulator}


@dataclass(frozen=True)
class Sgd:
    """w <- w - rate g. A zero gradient changes nothing: lazy equals dense."""

    decays: ClassVar[bool] = False

    @property
    def slots(self) -> dict[str, float]:
        """See Rule."""
        return {}

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, gap: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """See Rule."""
        return weight - rate * gradient, {}


def make_rule(options: DeepOptimizer) -> Rule:
    """The rule that options name; adamw is adam with the decay that its Optimizer adds."""
    return {"rmsprop": RMSprop, "adam": Adam, "adamw": Adam, "adagrad": Adagrad, "sgd": Sgd}[options.rule]()

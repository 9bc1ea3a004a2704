"""Update rules as pure functions of weight, gradient and slots.

Rules are element-wise: the same code updates a whole weight, a whole table, or only the table rows that a batch
touched.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import tensorflow as tf

from trainer.config import DeepOptimizer

Slots = dict[str, tf.Tensor]


class Rule(Protocol):
    """Interface of an optimizer's update rule."""

    @property
    def slots(self) -> dict[str, float]:
        """Name -> initial value of each slot, which has the shape of the weight."""

    @property
    def decays(self) -> bool:
        """Whether slots change in a step in which the gradient is zero."""

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, gap: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """Returns the new weight and slots.

        Args:
            weight, gradient, slots: [..., width] float32.
            rate: learning rate, scalar float32.
            gap: steps since the last update, including this one, float32 and broadcastable to the weight; always 1
                for a weight that is updated in every step.
            step: step of the run, counted from 1, scalar float32.
        """


@dataclass(frozen=True)
class RMSprop:
    """RMSprop: v <- rho v + (1 - rho) g^2;  w <- w - rate g / (sqrt(v) + epsilon).

    A row that no batch touches has g = 0: w stays and v decays by rho per step, which rho ** gap makes up for at the
    row's next update. Updating touched rows only therefore equals updating all rows in every step.

    Source: Tieleman and Hinton, "Neural Networks for Machine Learning", lecture 6.5, 2012. Defaults of rho and epsilon
    are those of the public recipe.
    """

    rho: float = 0.5
    epsilon: float = 1e-7
    decays: ClassVar[bool] = True

    @property
    def slots(self) -> dict[str, float]:
        """Starts the mean square of gradients at zero."""
        return {"mean_square": 0.0}

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, gap: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """Applies the update, catching up on the decay of steps without a gradient."""
        mean_square = tf.pow(self.rho, gap) * slots["mean_square"] + (1.0 - self.rho) * tf.square(gradient)
        return weight - rate * gradient / (tf.sqrt(mean_square) + self.epsilon), {"mean_square": mean_square}


@dataclass(frozen=True)
class Ftrl:
    """Follow the regularised leader, with learning-rate power -1/2 and no regularisation.

    n' = n + g^2;  z <- z + g - (sqrt(n') - sqrt(n)) / rate * w;  w <- -z rate / sqrt(n')

    A zero gradient changes nothing as long as w = -z rate / sqrt(n), which holds for weights that start at zero.
    Updating touched rows only is then exact.

    Source: McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, algorithm 1.
    """

    initial_accumulator: float = 0.1
    decays: ClassVar[bool] = False

    @property
    def slots(self) -> dict[str, float]:
        """Starts the sum of squares at `initial_accumulator` and the linear term at zero."""
        return {"accumulator": self.initial_accumulator, "linear": 0.0}

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, gap: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """Applies the update; `gap` and `step` are not used."""
        accumulator = slots["accumulator"] + tf.square(gradient)
        root = tf.sqrt(accumulator)
        linear = slots["linear"] + gradient - (root - tf.sqrt(slots["accumulator"])) / rate * weight
        return -linear * rate / root, {"accumulator": accumulator, "linear": linear}


@dataclass(frozen=True)
class Adam:
    """Adam: m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w - rate_t m / (sqrt(v) + epsilon)

    with rate_t = rate sqrt(1 - b2^t) / (1 - b1^t). Lazy on tables: the moments of a row that no batch touches decay as
    if its gradient were 0, but the row skips the updates that dense Adam would make from its momentum.

    Source: Kingma and Ba, "Adam", ICLR 2015.
    """

    first: float = 0.9
    second: float = 0.999
    epsilon: float = 1e-7
    decays: ClassVar[bool] = True

    @property
    def slots(self) -> dict[str, float]:
        """Starts both moments at zero."""
        return {"mean": 0.0, "mean_square": 0.0}

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, gap: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """Applies the update, catching up on the moments' decay of steps without a gradient."""
        mean = tf.pow(self.first, gap) * slots["mean"] + (1.0 - self.first) * gradient
        mean_square = tf.pow(self.second, gap) * slots["mean_square"] + (1.0 - self.second) * tf.square(gradient)
        # Bias correction by the step of the run, not by a row's number of updates: moments decay with every step.
        corrected = rate * tf.sqrt(1.0 - tf.pow(self.second, step)) / (1.0 - tf.pow(self.first, step))
        moved = weight - corrected * mean / (tf.sqrt(mean_square) + self.epsilon)
        return moved, {"mean": mean, "mean_square": mean_square}


@dataclass(frozen=True)
class Adagrad:
    """Adagrad: n <- n + g^2;  w <- w - rate g / sqrt(n + epsilon). A zero gradient changes nothing: lazy equals dense.

    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 2011. Initial accumulator and epsilon are
    those of Keras.
    """

    initial_accumulator: float = 0.1
    epsilon: float = 1e-7
    decays: ClassVar[bool] = False

    @property
    def slots(self) -> dict[str, float]:
        """Starts the sum of squares at `initial_accumulator`."""
        return {"accumulator": self.initial_accumulator}

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, gap: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """Applies the update; `gap` and `step` are not used."""
        accumulator = slots["accumulator"] + tf.square(gradient)
        return weight - rate * gradient / tf.sqrt(accumulator + self.epsilon), {"accumulator": accumulator}


@dataclass(frozen=True)
class Sgd:
    """Gradient descent: w <- w - rate g. A zero gradient changes nothing: lazy equals dense."""

    decays: ClassVar[bool] = False

    @property
    def slots(self) -> dict[str, float]:
        """Needs no slots."""
        return {}

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, gap: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """Applies the update; `gap` and `step` are not used."""
        return weight - rate * gradient, {}


def make_rule(options: DeepOptimizer) -> Rule:
    """Creates the rule that the options select; adamw is adam, with the decay applied by its Optimizer."""
    return {"rmsprop": RMSprop, "adam": Adam, "adamw": Adam, "adagrad": Adagrad, "sgd": Sgd}[options.rule]()

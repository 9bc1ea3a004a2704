"""Update rules of the optimizers, as functions of weight, gradient and slots, and their registry.

Rules are element-wise: the same code updates a whole weight, a whole table, or only the table rows that a batch looks
up. Importing this module does not load TensorFlow, because the command line reads the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from trainer.config import DeepOptimizer
from trainer.lazy import tf

Slots = Mapping[str, "tf.Tensor"]


class UpdateRule:
    """Base class of the update rules.

    Attributes:
        slots: name -> initial value of each accumulator, which has the shape of the weight.
        has_time_decay: whether accumulators change in a step in which the gradient is zero.
    """

    slots: ClassVar[Mapping[str, float]] = {}
    has_time_decay: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config: DeepOptimizer) -> Self:
        """Create the rule with the settings of the flags, of which most rules use none."""
        return cls()

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, elapsed: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """Return the new weight and slots.

        Args:
            weight, gradient, slots: [..., width] float32.
            rate: learning rate, scalar float32.
            elapsed: steps since the last update, including this one, float32 and broadcastable to the weight; always 1
                for a weight that is updated in every step.
            step: step of the run, counted from 1, scalar float32.
        """
        raise NotImplementedError

    def step_sizes(self, slots: Slots, rate: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Return how far a weight moves for a unit of gradient, given its new slots; broadcastable to the weight."""
        raise NotImplementedError

    def shrunk(
        self, weight: tf.Tensor, slots: Slots, l2: float, rate: tf.Tensor, elapsed: tf.Tensor, step: tf.Tensor
    ) -> tf.Tensor:
        """Return updated table rows with the L2 regularization of all steps since their last update.

        The loss has the term l2 w^2 in every step, but a row is only updated when a batch looks it up. Its gradient
        2 l2 w over all these steps is then taken at once and beside the moments, which a sum over many steps would
        distort:  w <- w max(0, 1 - 2 l2 elapsed step_size). The cost does not depend on the size of the table.

        Args:
            weight: rows after the update by the data's gradient, [..., width] float32.
            slots: their new slots.
            l2: factor of the sum of squares in the loss.
            rate, elapsed, step: as for `update`.
        """
        return weight * tf.maximum(0.0, 1.0 - (2.0 * l2) * elapsed * self.step_sizes(slots, rate, step))


@dataclass(frozen=True)
class RMSprop(UpdateRule):
    """RMSprop: v <- rho v + (1 - rho) g^2;  w <- w - rate g / (sqrt(v) + epsilon).

    A row that no batch looks up has g = 0: w stays and v decays by rho per step, which rho ** elapsed makes up for at
    the row's next update. Updating only the rows of a batch therefore equals updating all rows in every step.

    Source: Tieleman and Hinton, "Neural Networks for Machine Learning", lecture 6.5, 2012. Defaults of rho and epsilon
    are those of the public recipe.
    """

    rho: float = 0.5
    epsilon: float = 1e-7
    slots: ClassVar[Mapping[str, float]] = {"mean_square": 0.0}
    has_time_decay: ClassVar[bool] = True

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, elapsed: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """Apply the update, catching up on the decay of steps without a gradient."""
        mean_square = tf.pow(self.rho, elapsed) * slots["mean_square"] + (1.0 - self.rho) * tf.square(gradient)
        new_slots = {"mean_square": mean_square}
        return weight - self.step_sizes(new_slots, rate, step) * gradient, new_slots

    def step_sizes(self, slots: Slots, rate: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Return rate / (sqrt(v) + epsilon)."""
        return rate / (tf.sqrt(slots["mean_square"]) + self.epsilon)


@dataclass(frozen=True)
class Ftrl(UpdateRule):
    """Follow the regularized leader, with learning-rate power -1/2 and L2 regularization.

    n' = n + g^2;  z <- z + g - (sqrt(n') - sqrt(n)) / rate * w;  w <- -z rate / (sqrt(n') + rate l2)

    The regularization pulls towards zero from the start, not in every step, so a zero gradient changes nothing for
    weights that start at zero. Updating only the rows of a batch is then exact.

    Source: McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, algorithm 1, whose lambda_2 is
    `l2`.
    """

    l2: float = 0.0
    slots: ClassVar[Mapping[str, float]] = {"accumulator": 0.1, "linear": 0.0}

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, elapsed: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """Apply the update; `elapsed` and `step` are not used."""
        accumulator = slots["accumulator"] + tf.square(gradient)
        root = tf.sqrt(accumulator)
        linear = slots["linear"] + gradient - (root - tf.sqrt(slots["accumulator"])) / rate * weight
        return -linear * rate / (root + rate * self.l2), {"accumulator": accumulator, "linear": linear}


@dataclass(frozen=True)
class Adam(UpdateRule):
    """Adam: m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w - rate_t m / (sqrt(v) + epsilon)

    with rate_t = rate sqrt(1 - b2^t) / (1 - b1^t). Lazy on tables: the moments of a row that no batch looks up decay as
    if its gradient were 0, but the row skips the updates that dense Adam would make from its momentum.

    Source: Kingma and Ba, "Adam", ICLR 2015.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    slots: ClassVar[Mapping[str, float]] = {"mean": 0.0, "mean_square": 0.0}
    has_time_decay: ClassVar[bool] = True

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, elapsed: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """Apply the update, catching up on the moments' decay of steps without a gradient."""
        mean = tf.pow(self.beta_1, elapsed) * slots["mean"] + (1.0 - self.beta_1) * gradient
        mean_square = tf.pow(self.beta_2, elapsed) * slots["mean_square"] + (1.0 - self.beta_2) * tf.square(gradient)
        new_slots = {"mean": mean, "mean_square": mean_square}
        return weight - self.step_sizes(new_slots, rate, step) * mean, new_slots

    def step_sizes(self, slots: Slots, rate: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Return rate_t / (sqrt(v) + epsilon)."""
        # Bias correction by the step of the run, not by a row's number of updates: moments decay with every step.
        corrected_rate = rate * tf.sqrt(1.0 - tf.pow(self.beta_2, step)) / (1.0 - tf.pow(self.beta_1, step))
        return corrected_rate / (tf.sqrt(slots["mean_square"]) + self.epsilon)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: after Adam's update,  w <- w - rate weight_decay w_old.

    Unlike L2 regularization, the decay does not depend on the moments. A table row decays when a batch looks it up, for
    all steps since its last update:  w <- w - (1 - (1 - rate weight_decay)^elapsed) w_old,  which equals decay in every
    step if the rate has not changed since.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    weight_decay: float = 0.004

    @classmethod
    def from_config(cls, config: DeepOptimizer) -> Self:
        """Create the rule with the decay of --weight_decay."""
        return cls(weight_decay=config.weight_decay)

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, elapsed: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """Apply Adam's update and the decay of the old weight."""
        new_weight, new_slots = super().update(weight, gradient, slots, rate, elapsed, step)
        # By logarithms: a decay of 1e-6 per step would be lost in the rounding of 1 - 1e-6.
        log_kept = elapsed * tf.math.log1p(-tf.minimum(rate * self.weight_decay, 1.0))
        return new_weight + tf.math.expm1(log_kept) * weight, new_slots


@dataclass(frozen=True)
class Adagrad(UpdateRule):
    """Adagrad: n <- n + g^2;  w <- w - rate g / sqrt(n + epsilon). A zero gradient changes nothing: lazy equals dense.

    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 2011. Initial accumulator and epsilon are
    those of Keras.
    """

    epsilon: float = 1e-7
    slots: ClassVar[Mapping[str, float]] = {"accumulator": 0.1}

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, elapsed: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """Apply the update; `elapsed` and `step` are not used."""
        new_slots = {"accumulator": slots["accumulator"] + tf.square(gradient)}
        return weight - self.step_sizes(new_slots, rate, step) * gradient, new_slots

    def step_sizes(self, slots: Slots, rate: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Return rate / sqrt(n + epsilon)."""
        return rate / tf.sqrt(slots["accumulator"] + self.epsilon)


@dataclass(frozen=True)
class SGD(UpdateRule):
    """Gradient descent: w <- w - rate g. A zero gradient changes nothing: lazy equals dense."""

    def update(
        self, weight: tf.Tensor, gradient: tf.Tensor, slots: Slots, rate: tf.Tensor, elapsed: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """Apply the update; `slots`, `elapsed` and `step` are not used."""
        return weight - rate * gradient, {}

    def step_sizes(self, slots: Slots, rate: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Return the rate."""
        return rate


# The choices of --optimizer, the optimizer of the deep part; the wide part is trained with Ftrl.
OPTIMIZERS: dict[str, type[UpdateRule]] = {
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
    "adagrad": Adagrad,
    "sgd": SGD,
}

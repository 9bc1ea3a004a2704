"""Dynamic loss scaling for float16 (Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2)."""

import tensorflow as tf

INITIAL_SCALE = 2.0**15
GROWTH_STEPS = 2000
# The largest float16 is 65504, but the loss is float32, so the scale only has to keep the gradients in range.
LARGEST_SCALE = 2.0**24


class LossScale:
    """A factor of the loss that is doubled after GROWTH_STEPS finite steps and halved after each non-finite one.

    Args:
        dynamic: False keeps the factor at 1, for compute types with the range of float32.
    """

    def __init__(self, dynamic: bool):
        self.dynamic = dynamic
        self.scale = tf.Variable(INITIAL_SCALE if dynamic else 1.0, trainable=False)
        self.good_steps = tf.Variable(0.0, trainable=False)

    @property
    def state(self) -> dict[str, tf.Variable]:
        """The variables to save, by name; none if the scale is not dynamic."""
        return {"loss_scale": self.scale, "loss_scale_good_steps": self.good_steps} if self.dynamic else {}

    def update(self, finite: tf.Tensor) -> None:
        """Adjust the scale after a step.

        Args:
            finite: whether all gradients of the step were finite, scalar bool, the same on all workers.
        """
        if not self.dynamic:
            return
        grow = tf.logical_and(finite, self.good_steps + 1 >= GROWTH_STEPS)
        factor = tf.where(finite, tf.where(grow, 2.0, 1.0), 0.5)
        self.scale.assign(tf.clip_by_value(self.scale * factor, 1.0, LARGEST_SCALE))
        self.good_steps.assign(tf.where(tf.logical_or(grow, tf.logical_not(finite)), 0.0, self.good_steps + 1))

"""Gates, which weight the outputs of experts."""

from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from trainer.flags.model_options import ModelOptions
from trainer.models.layers import ParallelDense, ParallelStack, Style
from trainer.models.products import matmul
from trainer.models.training_pass import TrainingPass


class Gates(keras.layers.Layer):
    """Softmax weights of experts, one gate per reader (a task, or the shared part of a level).

    weights_g(x) = softmax(logits_g(x) / temperature), over the experts that the gate may read.

    Two options keep a gate from relying on a single expert in training: `expert_dropout` is the probability of setting
    a weight to 0, the others being rescaled to sum to 1 (Zhao et al., "Recommending What Video to Watch Next", RecSys
    2019, section 4.2.2); `gate_entropy_weight` times the gates' negative entropy, in nats, is added as a penalty.

    Args:
        readable: [gates, experts] bool, which experts each gate may read.
        inputs: width of the input.
        options: model flags: hidden units (gates without any are linear), initialisation, temperature, dropout and
            entropy weight.
        compute_dtype: dtype of the hidden layers' products; the softmax is float32.
        seed: seed of the weights.
        name: name of the layer.

    Input:  [batch, inputs] or [gates, batch, inputs].
    Output: [gates, batch, experts] float32; 0 for experts that a gate may not read.
    """

    def __init__(
        self,
        readable: np.ndarray,
        inputs: int,
        *,
        options: ModelOptions,
        compute_dtype: str,
        seed: int,
        name: str,
    ):
        super().__init__(name=name, dtype="float32", autocast=False)
        gates, experts = readable.shape
        # [gates, 1, experts], added to the logits: -inf becomes a weight of exactly 0.
        self._blocked = tf.constant(np.where(readable, 0.0, -np.inf)[:, np.newaxis, :], tf.float32)
        self._options, self._seed = options, seed
        self.hidden = ParallelStack(
            gates,
            inputs,
            options.gate_hidden_units,
            style=replace(Style.of(options, compute_dtype), dropout=0.0),
            seed=seed,
            name=f"{name}_hidden",
        )
        self.linear = ParallelDense(
            gates,
            self.hidden.output_width,
            experts,
            style=Style(),
            use_bias=False,
            start="zero" if options.gate_init == "uniform" else "random",
            seed=seed + ParallelStack.SEEDS // 2,
            name=f"{name}_linear",
        )
        self.built = True

    def call(self, x: tf.Tensor, training_pass: TrainingPass | None = None) -> tf.Tensor:
        """Returns the experts' weights, [gates, batch, experts] float32."""
        hidden = self.hidden(x, training_pass=training_pass) if self.hidden.dense else x
        weights = tf.nn.softmax(self.linear(hidden) / self._options.gate_temperature + self._blocked, axis=-1)
        if training_pass is None:
            return weights
        if self._options.gate_entropy_weight:
            # Summed over gates and experts, [batch]; the floor keeps log finite where a weight underflows.
            negative_entropy = tf.reduce_sum(tf.math.xlogy(weights, tf.maximum(weights, 1e-30)), axis=[0, 2])
            training_pass.penalties.append(self._options.gate_entropy_weight * negative_entropy)
        if self._options.expert_dropout:
            draws = training_pass.draw(tf.shape(weights), self._options.expert_dropout, self._seed)
            kept = tf.where(draws.keep, weights, 0.0)
            total = tf.reduce_sum(kept, axis=-1, keepdims=True)
            # If dropout hits all experts of a gate, the row keeps its weights.
            weights = tf.where(total > 0, tf.math.divide_no_nan(kept, total), weights)
        return weights


def mix(weights: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Mixes the experts' outputs by the weights of each gate.

    Args:
        weights: [gates, batch, experts] float32.
        outputs: [experts, batch, units].

    Returns:
        [gates, batch, units] in the dtype of `outputs`.
    """
    by_row = [tf.transpose(x, [1, 0, 2]) for x in (weights, outputs)]
    # One small product per row: [batch, gates, experts] @ [batch, experts, units].
    mixed = matmul(by_row[0], by_row[1], outputs.dtype.name)
    return tf.transpose(tf.cast(mixed, outputs.dtype), [1, 0, 2])

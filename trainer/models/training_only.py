"""The tower of features that are known only in training, such as the position at which an ad was shown."""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainer.config import ModelOptions
from trainer.layout import TrainingOnly
from trainer.models.layers import MLP, Dense, DenseConfig
from trainer.models.step_context import StepContext, uniform
from trainer.seeds import seed_of


class TrainingOnlyTower(keras.layers.Layer):
    """A shallow tower whose logits are added to those of the model (Zhao et al., RecSys 2019, section 4.3).

    It learns what features such as the position contribute to the labels, so that the rest of the model does not have
    to. During training, a row takes the constants of predictions with probability --training_only_dropout, as in the
    paper, so that the tower does not explain everything.

    Args:
        features: the features.
        options: the model's flags.
        outputs: number of logits.
        config: configuration of hidden layers.
    """

    def __init__(self, features: TrainingOnly, options: ModelOptions, outputs: int, config: DenseConfig):
        super().__init__(name="training_only", dtype="float32", autocast=False)
        self.features, self.options, self.config = features, options, config
        plain = DenseConfig(config.activation, compute_dtype=config.compute_dtype, seed=config.seed)
        self.hidden = MLP(options.training_only_hidden_units, plain, name="hidden")
        self.head = Dense(outputs, config.logits, use_bias=False, name="head")

    @property
    def served(self) -> tf.Tensor:
        """The constants that predictions take, [1, features] float32."""
        return tf.constant([self.features.serve], tf.float32)

    def build(self, values_shape: tuple[int | None, int]) -> None:
        """Create a table for each feature with ids."""
        width, self.tables = self.options.training_only_embedding_dim, []
        for name, cardinality in zip(self.features.names, self.features.cardinalities, strict=False):
            seed = seed_of(self.config.seed, f"{self.path}/{name}")
            initializer = keras.initializers.RandomNormal(stddev=width**-0.5, seed=seed)
            self.tables.append(self.add_weight(shape=(cardinality, width), initializer=initializer, name=f"id.{name}"))

    def call(self, values: tf.Tensor, context: StepContext | None = None) -> tf.Tensor:
        """Compute the tower's logits, [batch, outputs] float32.

        Args:
            values: ids and numbers, [batch, features] float32.
            context: None outside training.
        """
        if context is not None and self.options.training_only_dropout:
            seed = context.dropout_seed + [0, seed_of(0, self.path) % 2**20]
            draws = uniform(tf.stack([tf.shape(values)[0], 1]), seed)
            values = tf.where(draws < self.options.training_only_dropout, self.served, values)
        ids = tf.cast(values[:, : len(self.tables)], tf.int64)
        embedded = [rows_of(table.value, ids[:, column]) for column, table in enumerate(self.tables)]
        hidden = self.hidden(tf.concat([*embedded, values[:, len(self.tables) :]], axis=1), context=context)
        return self.head(hidden, context=context)


def rows_of(table: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Return the rows of a small table, [ids, width]; its gradient has all rows, like that of any dense weight."""

    @tf.custom_gradient
    def rows(weights: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return tf.gather(weights, ids), lambda upstream: tf.math.unsorted_segment_sum(upstream, ids, table.shape[0])

    return tf.convert_to_tensor(rows(tf.convert_to_tensor(table)))

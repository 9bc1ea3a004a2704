"""Wide & Deep (Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016)."""

import keras
import tensorflow as tf

from trainer.layout import InputLayout
from trainer.models.layers import HiddenLayers
from trainer.models.ranking import RankingModel
from trainer.options import ModelOptions


class WideDeep(RankingModel):
    """A linear model of all features plus a multilayer perceptron on their embeddings.

    logit = b + sum of the ids' wide weights + numerical @ k  +  head(hidden([embeddings, numerical]))

    Both parts see every feature. Several labels share the hidden layers and have a head and a wide part each.
    """

    def __init__(
        self,
        layout: InputLayout,
        tasks: tuple[str, ...],
        *,
        hidden_units: tuple[int, ...],
        dropout: float,
        combiner: str,
        compute_dtype: str,
        seed: int,
    ):
        super().__init__(layout, tasks, combiner=combiner, seed=seed, name="wide_deep")
        # Tables take the seeds from `seed` on; the dense layers start well behind them.
        self.hidden = HiddenLayers(hidden_units, dropout=dropout, compute_dtype=compute_dtype, seed=seed + 10_000)
        self.deep_head = keras.layers.Dense(
            len(tasks),
            kernel_initializer=keras.initializers.GlorotUniform(seed=seed + 20_000),
            name="deep_head",
            dtype="float32",
        )
        self.wide_numerical = self.add_weight(
            shape=(len(layout.numerical), len(tasks)), initializer="zeros", name="wide_numerical"
        )
        self.wide_bias = self.add_weight(shape=(len(tasks),), initializer="zeros", name="wide_bias")

    @property
    def wide_weights(self) -> list[keras.Variable]:
        """See RankingModel."""
        return [self.wide_numerical, self.wide_bias]

    def head(
        self, deep_input: tf.Tensor, wide_logit: tf.Tensor, numerical: tf.Tensor, dropout_seed: tf.Tensor | None
    ) -> tf.Tensor:
        """See RankingModel."""
        hidden = self.hidden(deep_input, dropout_seed=dropout_seed)
        deep_logit = self.deep_head(tf.cast(hidden, tf.float32))
        return deep_logit + wide_logit + tf.linalg.matmul(numerical, self.wide_numerical.value) + self.wide_bias.value


def build(
    options: ModelOptions, layout: InputLayout, tasks: tuple[str, ...], *, compute_dtype: str, seed: int
) -> WideDeep:
    """See trainer.models.build_model."""
    model = WideDeep(
        layout,
        tasks,
        hidden_units=options.deep_hidden_units,
        dropout=options.deep_dropout,
        combiner=options.combiner,
        compute_dtype=compute_dtype,
        seed=seed,
    )
    model(tf.zeros((1, layout.id_columns), tf.int32), tf.zeros((1, len(layout.numerical))))
    return model

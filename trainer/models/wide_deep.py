"""Wide & Deep (Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016)."""

import keras
import tensorflow as tf

from trainer.config import ModelOptions
from trainer.models.layers import HiddenLayers, Style
from trainer.models.ranking import RankingModel
from trainer.models.step_context import StepContext


class WideDeep(RankingModel):
    """A linear model of all features plus a multilayer perceptron on their embeddings.

    logit = b + sum of the IDs' wide weights + numerical @ k  +  head(hidden([embeddings, numerical]))

    Both parts see every feature. Tasks share the hidden layers; each has its own head and wide part.
    """

    always_wide = True

    def make_layers(self, options: ModelOptions, style: Style, seed: int) -> None:
        """Creates the hidden layers and a linear head for all tasks."""
        self.hidden = HiddenLayers(options.deep_hidden_units, style=style, seed=seed + 10_000)
        self.deep_head = keras.layers.Dense(
            sum(task.width for task in self.tasks),
            kernel_initializer=keras.initializers.GlorotUniform(seed=seed + 20_000),
            name="deep_head",
            dtype="float32",
        )

    def head(self, deep_input: tf.Tensor, training_pass: StepContext | None) -> tf.Tensor:
        """Computes the deep part's logits, [batch, outputs] float32."""
        hidden = self.hidden(deep_input, training_pass=training_pass)
        return self.deep_head(tf.cast(hidden, tf.float32))

    @property
    def shared_weights(self) -> list[keras.Variable]:
        """Weights of the hidden layers, which all tasks share."""
        return self.hidden.trainable_variables

"""Explicit interactions of features, a stage between the embeddings and the network of any model.

To add one, write a class here, with a line in `INTERACTIONS` and its name among the choices of --interaction.
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from trainer.config import ModelOptions
from trainer.layout import InputSchema
from trainer.models.layers import MLP, Dense, DenseConfig, matmul
from trainer.models.parts import Parts, side_by_side, whole
from trainer.models.step_context import StepContext

# The embeddings of each group of tables.
Matrices = Sequence[tf.Tensor | Parts]


class Interacted(NamedTuple):
    """The output of an interaction.

    Attributes:
        x: input of the network, [batch, ModelOptions.network_width] float32; of a ranking request in parts, if nothing
            joins what candidates share with what each has.
        logits: terms of the logits, [batch, outputs] float32 each.
    """

    x: tf.Tensor | Parts
    logits: tuple[tf.Tensor, ...] = ()


class Interaction(keras.layers.Layer):
    """No interaction: the network's input is all embeddings and numerical features, side by side.

    Args:
        options: the model's flags.
        layout: layout of the inputs.
        outputs: number of logits.
        config: configuration of hidden layers.
    """

    def __init__(self, options: ModelOptions, layout: InputSchema, outputs: int, config: DenseConfig):
        super().__init__(name="interaction", dtype="float32", autocast=False)
        self.options, self.layout, self.outputs, self.config = options, layout, outputs, config
        self.make_layers()

    def make_layers(self) -> None:
        """Create the layers, as attributes."""

    def call(self, deep: Matrices, numerical: tf.Tensor | Parts, context: StepContext | None = None) -> Interacted:
        """Compute the network's input. A ranking request comes in parts.

        Args:
            deep: embeddings of each group of tables, [batch, features, width] float32.
            numerical: [batch, InputSchema.deep_numerical and vectors] float32.
            context: None outside training.
        """
        return Interacted(side_by_side(deep, numerical))


class Cross(Interaction):
    """The cross network of DCN-V2 (Wang et al., WWW 2021), below the network: the stacked structure of the paper.

    x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, where x_0 is the input without an interaction. With --cross_rank r, W_l is
    the product of matrices of r columns and r rows (section 3.3).
    """

    def make_layers(self) -> None:
        """Create the layers, from the input up."""
        self.down, self.across = [], []
        for number in range(1, self.options.cross_layers + 1):
            if self.options.cross_rank:
                down = Dense(self.options.cross_rank, self.config.linear, use_bias=False, name=f"down_{number}")
                self.down.append(down)
            self.across.append(
                Dense(self.options.input_width(self.layout), self.config.linear, name=f"across_{number}")
            )

    def call(self, deep: Matrices, numerical: tf.Tensor | Parts, context: StepContext | None = None) -> Interacted:
        """Apply the layers in order."""
        below = side_by_side(deep, numerical)
        first = x = whole(below)
        for number, across in enumerate(self.across):
            crossed = across(self.down[number](below) if self.down else below)
            below = x = first * tf.cast(crossed, tf.float32) + x
        return Interacted(x)


class Dot(Interaction):
    """The dot products of all pairs of features, as in DLRM (Naumov et al., 2019).

    The numerical features together are one more vector: the output of a perceptron with --numerical_hidden_units. The
    network's input is that vector and the products. Embeddings narrower than the widest are projected to its width
    (Ginart et al., "Mixed Dimension Embeddings", 2019).
    """

    def make_layers(self) -> None:
        """Create the projections and the perceptron."""
        width = self.layout.widest
        self.projections = Projections(self.layout, self.config)
        self.numbers = None
        if self.layout.has_numbers:
            self.numbers = MLP((*self.options.numerical_hidden_units, width), self.config, name="numerical")

    def call(self, deep: Matrices, numerical: tf.Tensor | Parts, context: StepContext | None = None) -> Interacted:
        """Compute the products of each vector with those before it."""
        vectors, alone = self.projections([whole(pooled) for pooled in deep]), []
        if self.numbers is not None:
            alone = [tf.cast(self.numbers(numerical, context=context), tf.float32)]
            vectors = tf.concat([alone[0][:, tf.newaxis], vectors], axis=1)
        count = vectors.shape[1]  # [batch, count, width]
        products = matmul(vectors, tf.transpose(vectors, [0, 2, 1]), self.config.compute_dtype)
        pairs = [row * count + column for row in range(count) for column in range(row)]
        flat = tf.reshape(tf.cast(products, tf.float32), [-1, count * count])
        return Interacted(tf.concat([*alone, tf.gather(flat, pairs, axis=1)], axis=1))


class FactorizationMachine(Interaction):
    """The second order of factorization machines (Rendle, ICDM 2010), beside the network.

    Adds h_k . sum over pairs i < j of v_i * v_j to the logit k. v_i is the embedding of a feature, projected as in
    `Dot`, or the vector of a numerical feature times its value. h_k starts at 1, which makes it the sum of DeepFM (Guo
    et al., IJCAI 2017).
    """

    def make_layers(self) -> None:
        """Create the projections and the vectors of the numerical features."""
        self.projections = Projections(self.layout, self.config)
        self.vectors = Dense(self.layout.widest, self.config.logits, use_bias=False, name="numerical")

    def build(self, deep_shape: Sequence[tuple[int, ...]], numerical_shape: tuple[int, ...]) -> None:
        """Create the weights h."""
        self.factors = self.add_weight(shape=(self.layout.widest, self.outputs), initializer="ones", name="factors")

    def call(self, deep: Matrices, numerical: tf.Tensor | Parts, context: StepContext | None = None) -> Interacted:
        """Compute the pairs as half the difference between the square of the sum and the sum of squares."""
        vectors = self.projections([whole(pooled) for pooled in deep])
        total = tf.reduce_sum(vectors, axis=1)
        squares = tf.reduce_sum(tf.square(vectors), axis=1)
        if self.layout.has_numbers:
            numbers = whole(numerical)
            total += self.vectors(numbers)
            squares += tf.linalg.matmul(tf.square(numbers), tf.square(self.vectors.kernel.value))
        pairs = (tf.square(total) - squares) / 2  # [batch, width]
        return Interacted(side_by_side(deep, numerical), (tf.linalg.matmul(pairs, self.factors.value),))


class Projections(keras.layers.Layer):
    """Embeddings of one width: those of narrower groups are multiplied by a matrix of each feature's own.

    Args:
        layout: layout of the inputs.
        config: configuration of hidden layers, of which the compute dtype counts.
    """

    def __init__(self, layout: InputSchema, config: DenseConfig):
        super().__init__(name="projections", dtype="float32", autocast=False)
        self.width, self.config = layout.widest, config
        self.by_group: dict[str, Dense] = {}

    def build(self, input_shape: Sequence[tuple[int, ...]]) -> None:
        """Create a projection for each group that needs one."""
        for number, (_, features, width) in enumerate(input_shape):
            if width < self.width:
                name = f"group_{number}"
                self.by_group[name] = Dense(self.width, self.config.linear, stacks=features, use_bias=False, name=name)

    def call(self, deep: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return the embeddings of all groups, [batch, features, width] float32."""
        found = []
        for number, pooled in enumerate(deep):
            projection = self.by_group.get(f"group_{number}")
            if projection is not None:
                by_feature = projection(tf.transpose(pooled, [1, 0, 2]))
                pooled = tf.transpose(tf.cast(by_feature, tf.float32), [1, 0, 2])
            found.append(pooled)
        return tf.concat(found, axis=1)


INTERACTIONS: dict[str, type[Interaction]] = {
    "none": Interaction,
    "cross": Cross,
    "dot": Dot,
    "fm": FactorizationMachine,
}

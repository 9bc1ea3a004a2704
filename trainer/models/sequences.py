"""Encoders of sequences, a stage between the embeddings and the interaction of any model.

To add one, write a `SequenceEncoder` here, with a line in `ENCODERS` and its name in `Encoder` of
data/spec/features.py and, if it compares steps with a target, in `TARGET_ENCODERS` there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import keras
import tensorflow as tf

from trainer.config import ModelOptions
from trainer.embeddings.groups import TableGroup
from trainer.embeddings.tables import Pooled
from trainer.layout import InputSchema, ModelInputs, SequenceInput, SequenceSteps
from trainer.models.layers import MLP, Dense, DenseConfig, matmul, operand
from trainer.models.step_context import ACTIVATIONS, StepContext
from trainer.seeds import seed_of

Shape = tuple[int | None, ...]


class SequenceEncoder(keras.layers.Layer):
    """Turns the steps of a sequence into one vector.

    A key is what a step has: the embeddings of its categorical features, side by side, and its numbers.

    Args:
        compared: width of the embeddings that have a target. They come first in a key.
        width: width of all embeddings of a step.
        numbers: number of numerical features of a step.
        length: largest number of steps.
        options: the model's flags.
        config: configuration of hidden layers.
        name: name of the layer.
    """

    def __init__(
        self,
        compared: int,
        width: int,
        numbers: int,
        length: int,
        options: ModelOptions,
        config: DenseConfig,
        *,
        name: str,
    ):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.compared, self.width, self.numbers, self.length = compared, width, numbers, length
        # Hidden layers see steps, of which padding must not count: no moments over rows, and no dropout of theirs.
        self.options, self.config = options, replace(config, batch_norm=False, dropout=0.0)
        self.make_layers()

    def make_layers(self) -> None:
        """Create the layers, as attributes."""

    def call(
        self, keys: tf.Tensor, target: tf.Tensor, present: tf.Tensor, context: StepContext | None = None
    ) -> tf.Tensor:
        """Encode the steps of each row, of which those that are padding must have no effect.

        In a ranking request, the steps of one row may be compared with the targets of many: the first axis of `keys`
        and `present` is then 1, as that of what depends on them alone.

        Args:
            keys: [batch, length, width + numbers] float32, from the newest step on; any finite values for padding.
            target: embeddings of the targets, [batch, compared] float32.
            present: [batch, length] float32, 1 for a step and 0 for padding.
            context: None outside training.

        Returns:
            A vector that stands for the embeddings of a step, and its numbers, [batch, width + numbers] float32.
        """
        weights = tf.expand_dims(self.weigh(keys, target, present, context), 1)  # [batch, 1, length]
        return tf.squeeze(tf.linalg.matmul(weights, keys), axis=1)

    def weigh(self, keys: tf.Tensor, target: tf.Tensor, present: tf.Tensor, context: StepContext | None) -> tf.Tensor:
        """Return the weight of each step in the sum of keys, [batch, length] float32; 0 for padding."""
        raise NotImplementedError


class Sum(SequenceEncoder):
    """The sum over steps."""

    def weigh(self, keys: tf.Tensor, target: tf.Tensor, present: tf.Tensor, context: StepContext | None) -> tf.Tensor:
        """Return 1 for every step."""
        return present


class Mean(SequenceEncoder):
    """The mean over steps; 0 without any."""

    def weigh(self, keys: tf.Tensor, target: tf.Tensor, present: tf.Tensor, context: StepContext | None) -> tf.Tensor:
        """Return 1 / number of steps for every step."""
        return tf.math.divide_no_nan(present, tf.reduce_sum(present, axis=1, keepdims=True))


class Din(SequenceEncoder):
    """The sum over steps, weighted by how each step relates to the target: the attention of DIN.

    A perceptron with --attention_hidden_units computes a step's weight from [key, target, key - target, key * target,
    numbers]. The weights are not normalized, so that their sum tells how much of the history is about the target (Zhou
    et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, section 4.3). The difference and the
    product are those of the embeddings that have a target.
    """

    def make_layers(self) -> None:
        """Create the layers after the first one."""
        self.hidden = MLP(self.options.attention_hidden_units[1:], self.config, name="hidden")
        self.score = Dense(1, self.config.logits, name="score")

    def build(self, keys_shape: Shape, target_shape: Shape, present_shape: Shape) -> None:
        """Create the weights of the first layer: as a dense layer on the whole input would have them."""
        units, inputs = self.options.attention_hidden_units[0], self.width + 3 * self.compared + self.numbers
        limit, seed = math.sqrt(6 / (inputs + units)), seed_of(self.config.seed, f"{self.path}/kernel")
        random = keras.initializers.RandomUniform(-limit, limit, seed=seed)
        self.kernel = self.add_weight(shape=(inputs, units), initializer=random, name="kernel")
        self.bias = self.add_weight(shape=(units,), initializer="zeros", name="bias")

    def weigh(self, keys: tf.Tensor, target: tf.Tensor, present: tf.Tensor, context: StepContext | None) -> tf.Tensor:
        """Compute the perceptron for every step."""
        hidden = self.hidden(tf.reshape(self._first_layer(keys, target), [-1, self.bias.shape[0]]), context=context)
        return tf.reshape(self.score(hidden, context=context), [-1, self.length]) * present

    def _first_layer(self, keys: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        """Compute the first hidden layer, [batch, length, units] in the compute dtype.

        k Wk + t Wt + (k - t) Wd + (k * t) Wp  =  k (Wk + Wd + diag(t) Wp) + t (Wt - Wd), so one product with a matrix
        of each row's own takes a quarter of the multiplications, and no tensor as wide as the input exists.
        """
        compared, dtype = self.compared, self.config.compute_dtype
        of_key, of_target, of_difference, of_product, of_numbers = tf.split(
            self.kernel.value, [self.width, compared, compared, compared, self.numbers]
        )
        alone = [[0, self.width - compared + self.numbers], [0, 0]]  # rows of what has no target
        shared = tf.concat([of_key, of_numbers], axis=0) + tf.pad(of_difference, alone)
        of_row = row_matrices(shared, tf.pad(target, [[0, 0], alone[0]]), tf.pad(of_product, alone))
        shift = tf.linalg.matmul(target, of_target - of_difference) + self.bias.value  # [batch, units]
        product = matmul(keys, of_row, dtype)
        hidden = ACTIVATIONS[self.config.activation](product + tf.expand_dims(tf.cast(shift, product.dtype), 1))
        return tf.cast(hidden, dtype)


def row_matrices(shared: tf.Tensor, target: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Return a matrix for each row, shared + diag(target) factor.

    Its gradients are sums over rows; as products with ones, they take a fraction of the time.

    Args:
        shared, factor: [inputs, units] float32.
        target: [batch, inputs] float32.

    Returns:
        [batch, inputs, units] float32.
    """

    @tf.custom_gradient
    def computed(
        shared: tf.Tensor, target: tf.Tensor, factor: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            ones = tf.ones([1, tf.shape(target)[0]])

            def total(x: tf.Tensor) -> tf.Tensor:  # [batch, inputs, units] -> [inputs, units]
                return tf.reshape(ones @ tf.reshape(x, [-1, math.prod(shared.shape)]), shared.shape)

            of_target = tf.reduce_sum(upstream * factor, axis=2)
            return [total(upstream), of_target, total(upstream * tf.expand_dims(target, 2))]

        return shared + tf.expand_dims(target, 2) * factor, gradient

    return tf.convert_to_tensor(computed(shared, target, factor))


class SelfAttention(SequenceEncoder):
    """A Transformer block over the steps and the target, as in BST; the vector is the output of the target's token.

    x_0 is the target's token and x_i that of the i-th newest step: the embeddings, plus a projection of the numbers and
    a learned vector of the position. Then, with --attention_heads heads (Chen et al., "Behavior Sequence Transformer
    for E-commerce Recommendation in Alibaba", 2019, with the block of Vaswani et al., 2017),

    y = norm(x_0 + attention(x_0 over x_0, x_1, ...)),  output = norm(y + W_2 activation(W_1 y + b_1) + b_2).

    The target's token is 0 where a feature has no target. Numbers are averaged by the mean attention of the heads.
    A row without steps attends to its target only.
    """

    def make_layers(self) -> None:
        """Create the layers after the attention."""
        self.wide = Dense(4 * self.width, self.config, name="wide")
        self.narrow = Dense(self.width, self.config.linear, name="narrow")
        self.norms = [
            keras.layers.LayerNormalization(epsilon=1e-5, dtype="float32", autocast=False, name=f"norm_{number}")
            for number in (1, 2)
        ]

    def build(self, keys_shape: Shape, target_shape: Shape, present_shape: Shape) -> None:
        """Create the weights of the tokens and of the attention; a head is `width` / heads wide, at least 1."""
        heads = self.options.attention_heads
        size = max(1, self.width // heads)

        def weight(name: str, shape: tuple[int, ...], inputs: int, units: int) -> keras.Variable:
            limit, seed = math.sqrt(6 / (inputs + units)), seed_of(self.config.seed, f"{self.path}/{name}")
            random = keras.initializers.RandomUniform(-limit, limit, seed=seed)
            return self.add_weight(shape=shape, initializer=random, name=name)

        width, whole = self.width, heads * size
        self.positions = self.add_weight(shape=(1 + self.length, width), initializer="zeros", name="positions")
        self.of_numbers = weight("numbers_kernel", (self.numbers, width), self.numbers, width) if self.numbers else None
        self.of_query = weight("query_kernel", (width, heads, size), width, whole)
        self.of_key = weight("key_kernel", (width, heads, size), width, whole)
        self.of_value = weight("value_kernel", (width, heads, size), width, whole)
        self.of_output = weight("output_kernel", (heads, size, width), whole, width)

    def call(
        self, keys: tf.Tensor, target: tf.Tensor, present: tf.Tensor, context: StepContext | None = None
    ) -> tf.Tensor:
        """Apply the block to the target's token, the only one whose output is used.

        With one query per row, its projections are applied to the query and to the weighted sum of tokens, and not to
        every token, and what positions and numbers add to tokens is added to the scores and to that sum.
        """
        dtype, positions = self.config.compute_dtype, self.positions.value
        own = tf.pad(target, [[0, 0], [0, self.width - self.compared]]) + positions[0]  # [batch, width]
        query = tf.einsum("bw,whs->bhs", own, self.of_query.value)
        asked = tf.einsum("bhs,whs->bhw", query, self.of_key.value) / math.sqrt(self.of_key.shape[2])
        of_token = tf.eye(self.width)  # [width + numbers, width]
        if self.of_numbers is not None:
            of_token = tf.concat([of_token, self.of_numbers.value], axis=0)
        asked_keys = operand(_times(asked, tf.transpose(of_token)), dtype)
        scores = tf.cast(tf.linalg.matmul(asked_keys, operand(keys, dtype), transpose_b=True), tf.float32)
        scores += _times(asked, tf.transpose(positions[1:]))  # [batch, heads, length]
        scores = tf.where(tf.expand_dims(present, 1) > 0, scores, -math.inf)
        of_own = tf.expand_dims(tf.einsum("bhw,bw->bh", asked, own), 2)
        attention = tf.nn.softmax(tf.concat([of_own, scores], axis=2), axis=2)
        to_own, of_steps = tf.split(attention, [1, self.length], axis=2)  # [batch, heads, 1 or length]
        summed = tf.cast(matmul(of_steps, keys, dtype), tf.float32)  # [batch, heads, width + numbers]
        seen = _times(summed, of_token) + _times(of_steps, positions[1:]) + to_own * tf.expand_dims(own, 1)
        attended = tf.einsum("bhw,whs,hsv->bv", seen, self.of_value.value, self.of_output.value)
        x = self.norms[0](own + attended)
        x = self.norms[1](x + tf.cast(self.narrow(self.wide(x, context=context), context=context), tf.float32))
        return tf.concat([x, tf.reduce_mean(summed[:, :, self.width :], axis=1)], axis=1)


def _times(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Return x @ matrix for x [batch, heads, n] as one product of matrices, which takes less time than one per row."""
    return tf.reshape(tf.linalg.matmul(tf.reshape(x, [-1, x.shape[2]]), matrix), [-1, x.shape[1], matrix.shape[1]])


ENCODERS: dict[str, type[SequenceEncoder]] = {
    "sum": Sum,
    "mean": Mean,
    "din": Din,
    "self_attention": SelfAttention,
}


class Sequences(keras.layers.Layer):
    """Encodes all sequences: what follows sees one vector per feature, and one number for each of their numbers.

    Args:
        options: the model's flags.
        layout: layout of the inputs.
        groups: the groups of deep tables.
        config: configuration of hidden layers.
    """

    def __init__(self, options: ModelOptions, layout: InputSchema, groups: Sequence[TableGroup], config: DenseConfig):
        super().__init__(name="sequences", dtype="float32", autocast=False)
        self.layout, self.groups = layout, tuple(groups)
        self._places = {
            feature.name: (number, place)
            for number, group in enumerate(groups)
            for place, feature in enumerate(group.pooled)
        }
        # Those that have a target first, as encoders need them.
        self._features = [_compared_first(sequence) for sequence in layout.sequences]
        self.encoders = []
        for number, (sequence, features) in enumerate(zip(layout.sequences, self._features, strict=True), start=1):
            widths = {name: layout.named(name).width for name, _ in features}
            compared = sum(widths[name] for name, target in features if target)
            encoder = ENCODERS[sequence.encoder]
            sizes = compared, sum(widths.values()), len(sequence.numbers), sequence.length
            self.encoders.append(encoder(*sizes, options, config, name=f"{sequence.encoder}_{number}"))

    def call(
        self,
        embedded: Pooled,
        numerical: tf.Tensor,
        sequences: Sequence[SequenceSteps],
        context: StepContext | None = None,
    ) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
        """Encode the sequences of a batch.

        Args:
            embedded: the embeddings.
            numerical: [batch, numerical] float32.
            sequences: the steps of each sequence.
            context: None outside training.

        Returns:
            The vectors of all features of each group of tables, [batch, features, width] float32, and all numbers,
            [batch, InputSchema.deep_numerical] float32.
        """
        if not self.encoders:
            return embedded.deep, numerical
        steps = steps_by_feature(self.groups, embedded)
        vectors, numbers = self.encode(steps, lambda _, name: self._vector(embedded, name), sequences, context)
        deep = []
        for group, pooled in zip(self.groups, embedded.deep, strict=True):
            encoded = [tf.expand_dims(vectors[feature.name], 1) for feature in group.in_sequences]
            deep.append(tf.concat([pooled, *encoded], axis=1))
        return tuple(deep), tf.concat([numerical, *numbers], axis=1)

    def encode(
        self,
        steps: Mapping[str, tf.Tensor],
        target_of: Callable[[SequenceInput, str], tf.Tensor],
        sequences: Sequence[SequenceSteps],
        context: StepContext | None = None,
    ) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
        """Encode the steps of all sequences. In a ranking request, the rows that all candidates share are one.

        Args:
            steps: embeddings of the steps of each feature, [batch, length, width] float32.
            target_of: returns the embedding of a target of a sequence, [batch, width] float32.
            sequences: which steps each sequence has, and their numbers.
            context: None outside training.

        Returns:
            The vector of each feature, [batch, width] float32, and the numbers of each sequence, [batch, numbers].
        """
        vectors, numbers = dict[str, tf.Tensor](), list[tf.Tensor]()
        of_layout = zip(self.layout.sequences, self._features, self.encoders, sequences, strict=True)
        for sequence, features, encoder, own in of_layout:
            keys = [steps[name] for name, _ in features] + ([own.numbers] if own.numbers.shape[2] else [])
            targets = [target_of(sequence, target) for _, target in features if target]
            target = tf.concat(targets, axis=1) if targets else tf.zeros([tf.shape(own.present)[0], 0])
            found = encoder(tf.concat(keys, axis=2) if len(keys) > 1 else keys[0], target, own.present, context=context)
            *parts, pooled = tf.split(found, [*(steps[name].shape[2] for name, _ in features), encoder.numbers], axis=1)
            vectors |= zip((name for name, _ in features), parts, strict=True)
            numbers.append(pooled)
        return vectors, numbers

    def _vector(self, embedded: Pooled, name: str) -> tf.Tensor:
        """Return the embedding of a pooled feature, [batch, width] float32."""
        group, place = self._places[name]
        return embedded.deep[group][:, place]


def _compared_first(sequence: SequenceInput) -> list[tuple[str, str]]:
    """Return the categorical features of a sequence with their targets, or "": those that have a target first."""
    return sorted(zip(sequence.features, sequence.targets, strict=True), key=lambda pair: not pair[1])


def steps_by_feature(groups: Sequence[TableGroup], embedded: Pooled) -> dict[str, tf.Tensor]:
    """Return the embeddings of the steps of each feature of groups, [batch, length, width] float32."""
    found: dict[str, tf.Tensor] = {}
    with_steps = [group for group in groups if group.in_sequences]
    for group, steps in zip(with_steps, embedded.steps, strict=True):
        parts = tf.split(steps, [feature.hotness for feature in group.in_sequences], axis=1)
        found |= zip((feature.name for feature in group.in_sequences), parts, strict=True)
    return found


def steps_of(layout: InputSchema, inputs: ModelInputs) -> tuple[tf.Tensor, tuple[SequenceSteps, ...]]:
    """Return what a model needs for the sequences in the matrices that it is called with.

    Returns:
        The ids, where the lists of sequences begin with their newest step, and the steps of each sequence. A step that
        has no id of one of its features does not exist.
    """
    if not layout.sequences:
        return inputs.ids, ()
    ids = {feature.name: inputs.ids[:, feature.start : feature.stop] for feature in layout.categorical}
    found = []
    for sequence in layout.sequences:
        exists = tf.reduce_all(tf.stack([ids[name] >= 0 for name in sequence.features]), axis=0)  # [batch, length]
        present, numbers = tf.cast(exists, tf.float32), tf.zeros([tf.shape(exists)[0], sequence.length, 0])
        if sequence.numbers:
            columns = [inputs.numbers[:, layout.sequence_numbers[name]] for name in sequence.numbers]
            numbers = tf.where(exists[:, :, tf.newaxis], tf.stack(columns, axis=2), 0.0)
        if not sequence.newest_first:
            lengths = tf.reduce_max(tf.where(exists, tf.range(1, sequence.length + 1), 0), axis=1)
            present, numbers = (tf.reverse_sequence(own, lengths, seq_axis=1) for own in (present, numbers))
            ids |= {name: tf.reverse_sequence(ids[name], lengths, seq_axis=1) for name in sequence.features}
        found.append(SequenceSteps(present, numbers))
    return tf.concat([ids[feature.name] for feature in layout.categorical], axis=1), tuple(found)

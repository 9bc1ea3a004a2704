"""The Keras model of every architecture: embedding tables, a network, and an optional wide part."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.embeddings.groups import Lookups
from trainer.embeddings.placement import HostTables
from trainer.embeddings.shards import Shards
from trainer.embeddings.tables import EmbeddingTables, Pooled
from trainer.layout import InputSchema, ModelInputs, RowValues, SequenceSteps
from trainer.models.interactions import INTERACTIONS, Interacted
from trainer.models.network import Network
from trainer.models.parts import whole
from trainer.models.ranking_request import RankingRequest
from trainer.models.sequences import Sequences, steps_of
from trainer.models.step_context import StepContext
from trainer.models.training_only import TrainingOnlyTower
from trainer.models.vectors import Vectors
from trainer.models.weights import named
from trainer.variables import TableRows


class RankingModel(keras.Model):
    """A model that maps IDs and numerical features to logits.

    logits = network(interaction(embeddings, numerical))  [+ b + sum of the IDs' wide weights + numerical @ k]

    Without an interaction, the network's input is [embeddings, numerical]; the terms in brackets are the wide part.
    Before the interaction, encoders turn the steps of sequences into an embedding per feature, and their numbers into
    one number each. Only the network sees these numbers and the vectors, which are of rows or looked up by ids, and are
    normalized and projected. A tower of features that are known only in training adds its own logits.

    The training step calls `embeddings` and `logits` separately, because it differentiates with respect to the
    embeddings. Evaluation calls `embed` and `logits`; exports, whose graphs take ids, just call the model.

    Args:
        network: the part between the embeddings and the logits.
        layout: layout of the inputs.
        seed: seed of the initial values of the tables.
        shards: how large tables are sharded across workers; None if every worker holds all rows.
        host: the groups of tables whose rows are in host memory; None if there are none.
        restored: whether a checkpoint overwrites the weights, so that tables have no initial values.
    """

    def __init__(
        self,
        network: Network,
        layout: InputSchema,
        *,
        seed: int,
        shards: Shards | None,
        host: HostTables | None = None,
        restored: bool = False,
    ):
        options = network.options
        super().__init__(name=options.model, dtype="float32")
        self.network, self.layout, self.tasks = network, layout, network.tasks
        wide_outputs = network.outputs if options.has_wide_part else 0
        self.embeddings = EmbeddingTables(
            layout,
            outputs=wide_outputs,
            combiner=options.combiner,
            init_std=options.embedding_init_std,
            seed=seed,
            shards=shards,
            host=host,
            restored=restored,
        )
        self.wide_weights = []
        if wide_outputs:
            shape = (len(layout.numerical), wide_outputs)
            self.wide_weights += [self.add_weight(shape=shape, initializer="zeros", name="wide_numerical")]
            self.wide_weights += [self.add_weight(shape=(wide_outputs,), initializer="zeros", name="wide_bias")]
        self.sequences = Sequences(options, layout, self.embeddings.deep_groups, network.dense_config)
        self.vectors = Vectors(options, layout, network.dense_config)
        self.interaction = INTERACTIONS[options.interaction](options, layout, network.outputs, network.dense_config)
        self.training_only = (
            TrainingOnlyTower(layout.training_only, options, network.outputs, network.dense_config)
            if layout.training_only.names
            else None
        )
        self._network_layers = list(_layers_in(vars(network)))  # for Keras to find their weights
        self.built = True
        with keras.name_scope(self.name, caller=self):  # layers create their weights when they are first called
            groups = self.embeddings.deep_groups
            deep = [tf.zeros((1, len(group.pooled), group.width)) for group in groups]
            looked_up = [tf.zeros((1, 1, vector.dimension)) for vector in layout.pretrained]
            steps = [tf.zeros((1, group.steps, group.width)) for group in groups if group.in_sequences]
            trained = len(self.embeddings.deep_variables) - len(groups)
            pooled = Pooled((*deep, *looked_up[:trained]), (), tuple(steps), tuple(looked_up[trained:]))
            values = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape), self.value_specs(1))
            network.call(self.deep_input(pooled, values))
            if self.training_only is not None:
                self.training_only(self.training_only.served)

    @property
    def trains_joint_probabilities(self) -> bool:
        """Whether tasks with `given` are trained on the probability that both labels are 1, on all rows."""
        return self.network.trains_joint_probabilities

    @property
    def shared_weights(self) -> list[keras.Variable]:
        """Dense weights that are trained by several tasks, those nearest to the tasks last."""
        layers: list[keras.layers.Layer] = [self.sequences, self.vectors, self.interaction]
        below = [weight for layer in layers for weight in layer.trainable_variables]
        return [*below, *self.network.shared_weights]

    @property
    def deep_weights(self) -> list[keras.Variable]:
        """All trainable weights except for the tables and the wide part."""
        layers = [self.sequences, self.vectors, self.interaction, *self._network_layers]
        layers += [] if self.training_only is None else [self.training_only]
        return [weight for layer in layers for weight in layer.trainable_variables]

    @property
    def weights_by_name(self) -> dict[str, tf.Variable | TableRows]:
        """All weights by the names under which they are saved."""
        variables = {variable.path for variable in self.embeddings.variables}
        dense = [variable for variable in self.variables if variable.path not in variables]
        return named(dense) | self.embeddings.tables()

    @property
    def moving_moments(self) -> list[keras.Variable]:
        """The moving moments of batch normalization, which a step updates without gradients."""
        frozen = {variable.path for variable in self.embeddings.frozen_variables}
        return [variable for variable in self.non_trainable_variables if variable.path not in frozen]

    @property
    def parameters(self) -> int:
        """Number of parameters, including the rows of sharded tables on other workers."""
        return sum(math.prod(weight.shape) for weight in self.weights_by_name.values())

    def value_specs(self, rows: int | None) -> RowValues:
        """Return the types of `InputSchema.row_values` as tensors; `rows` is the number of rows, None if it varies."""
        layout, width = self.layout, len(self.layout.training_only.names)
        sequences = tuple(
            SequenceSteps(
                tf.TensorSpec([rows, sequence.length], tf.float32),
                tf.TensorSpec([rows, sequence.length, len(sequence.numbers)], tf.float32),
            )
            for sequence in layout.sequences
        )
        return RowValues(
            tf.TensorSpec([rows, len(layout.numerical)], tf.float32),
            sequences,
            tf.TensorSpec([rows, layout.vector_columns], tf.float32),
            (tf.TensorSpec([rows, width], tf.float32),) if width else (),
        )

    def embed(self, lookups: Sequence[Lookups[tf.Tensor]]) -> Pooled:
        """Return the embeddings of a batch. A collective if tables are sharded."""
        routes = self.embeddings.routes(lookups)
        return self.embeddings.pool(self.embeddings.sources(routes, lookups), lookups)

    def deep_input(self, embedded: Pooled, values: RowValues) -> tf.Tensor:
        """Return the input of the network, [batch, ModelOptions.network_width] float32."""
        return self._interacted(embedded, values, None).x

    def _interacted(self, embedded: Pooled, values: RowValues, context: StepContext | None) -> Interacted:
        groups = len(self.embeddings.deep_groups)
        looked_up = [tf.squeeze(own, axis=1) for own in (*embedded.deep[groups:], *embedded.frozen)]
        embedded = embedded._replace(deep=embedded.deep[:groups])
        deep, numbers = self.sequences(embedded, values.numerical, values.sequences, context=context)
        if self.layout.vector_dimensions:
            of_rows = [values.vectors] if self.layout.vectors else []
            all_vectors = tf.concat([*of_rows, *looked_up], axis=1)
            numbers = tf.concat([numbers, self.vectors(all_vectors, context=context)], axis=1)
        if (scale := self.network.options.numerical_scale) != 1:
            numbers *= scale
        return self.interaction(deep, numbers, context=context)

    def logits(self, embedded: Pooled, values: RowValues, context: StepContext | None = None) -> tf.Tensor:
        """Compute logits from embeddings. In training, the context collects penalties.

        Args:
            embedded: the embeddings.
            values: what else the model reads of the rows.
            context: None outside training.

        Returns:
            [batch, outputs] float32.
        """
        interacted, wide = self._interacted(embedded, values, context), list[tf.Tensor]()
        if self.wide_weights:
            # The wide part is float32 throughout.
            wide = [*embedded.wide, tf.linalg.matmul(values.numerical, self.wide_weights[0].value)]
        logits = self._total(interacted, wide, values.training_only, context)
        if context is not None:
            self.network.add_penalties(logits, context)
        return logits

    def _total(
        self,
        interacted: Interacted,
        wide: Sequence[tf.Tensor],
        training_only: Sequence[tf.Tensor] = (),
        context: StepContext | None = None,
    ) -> tf.Tensor:
        """Return the sum of all terms of the logits, [batch, outputs] float32.

        Args:
            interacted: the output of the interaction.
            wide: terms of the wide part without its bias, [batch, outputs] float32 each.
            training_only: see `RowValues`.
            context: None outside training.
        """
        logits = tf.add_n([self.network.call(interacted.x, context), *interacted.logits])  # [batch, outputs]
        if self.training_only is not None:
            [known] = training_only or [self.training_only.served]
            logits += self.training_only(known, context=context)
        if self.wide_weights:
            logits = tf.add_n([logits, *wide]) + self.wide_weights[1].value
        return logits

    def rank(self, request: ModelInputs, candidates: ModelInputs) -> tf.Tensor:
        """Compute the logits of the candidates of a request, [candidates, outputs] float32, outside training.

        They are those of rows that have the request's inputs and those of a candidate, but what depends on the
        request alone is computed once. A graph made of this keeps the weights that the first layer has at that time.

        Args:
            request: the inputs that all candidates share, one row of the first layout of `InputSchema.sides`.
            candidates: those of each candidate, rows of the second layout.
        """
        embedded = RankingRequest(self.layout, self.embeddings, request, candidates)
        deep, numbers = embedded.interacting(self.sequences, self.vectors)
        interacted = self.interaction.call(deep, numbers.times(self.network.options.numerical_scale))
        if not self.network.takes_parts:
            interacted = interacted._replace(x=whole(interacted.x))
        wide = []
        if self.wide_weights:
            numerical, slopes = embedded.numerical, self.wide_weights[0].value
            products = [
                tf.linalg.matmul(numerical.shared, tf.gather(slopes, numerical.shared_places)),
                tf.linalg.matmul(numerical.own, tf.gather(slopes, numerical.own_places)),
            ]
            [of_request, of_candidate] = embedded.wide
            wide = [of_request + products[0] + (of_candidate + products[1])]
        return self._total(interacted, wide)

    def call(
        self,
        ids: tf.Tensor,
        numerical: tf.Tensor,
        weights: tf.Tensor | None = None,
        numbers: tf.Tensor | None = None,
        vectors: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Compute logits [batch, outputs] float32, outside training.

        Args:
            ids, numerical, weights, numbers, vectors: see `ModelInputs`; no weights are needed if the ids of no feature
                have any, no numbers if no sequence has any, and no vectors if there are none.
        """
        ids, sequences = steps_of(self.layout, ModelInputs(ids, numerical, weights, numbers, vectors))
        return self.logits(self.embeddings.pool_padded(ids, weights), RowValues(numerical, sequences, vectors))


def _layers_in(value: Any) -> Iterator[keras.layers.Layer]:
    """Yield the layers in an attribute: a layer, or a list or dict of layers."""
    if isinstance(value, keras.layers.Layer):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _layers_in(item)

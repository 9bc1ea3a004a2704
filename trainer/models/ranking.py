"""Base class of all ranking models: embedding tables as input, logits of the tasks as output."""

from typing import Self

import keras
import tensorflow as tf

from trainer.config import ModelOptions
from trainer.embeddings.shards import Shards
from trainer.embeddings.tables import EmbeddingRows, EmbeddingTables
from trainer.layout import InputSchema
from trainer.models.layers import Style
from trainer.models.step_context import StepContext
from trainer.tasks.task import Task


class RankingModel(keras.Model):
    """Base class of models that map IDs and numerical features to logits.

    logits = head([embeddings, numerical])  [+ b + sum of the IDs' wide weights + numerical @ k, the wide part]

    Subclasses implement `make_layers` and `head`. The training step calls `gather` and `logits` separately, because it
    differentiates with respect to the gathered rows; everything else just calls the model.

    Args:
        options: model flags.
        layout: layout of the inputs.
        tasks: prediction tasks; each has one logit, or one per class.
        compute_dtype: float32, float16 or bfloat16; weights, logits and loss are always float32.
        seed: seed of the initial weights. Tables use the seeds that follow it, dense layers those from seed + 10,000.
        shards: how large tables are sharded across workers; None if every worker holds all rows.

    Attributes:
        always_wide: whether every task has a wide part, a linear model of all features, even without --wide_part.
        trains_joint_probabilities: whether tasks with `given` are trained on the probability that both labels are 1, on
            all rows.
    """

    always_wide = False
    trains_joint_probabilities = False

    def __init__(
        self,
        options: ModelOptions,
        layout: InputSchema,
        tasks: tuple[Task, ...],
        *,
        compute_dtype: str,
        seed: int,
        shards: Shards | None,
    ):
        super().__init__(name=options.model, dtype="float32")
        self.layout, self.tasks, wide = layout, tasks, self.always_wide or options.wide_part
        outputs = sum(task.width for task in tasks)
        self.embeddings = EmbeddingTables(
            layout,
            outputs=outputs if wide else 0,
            combiner=options.combiner,
            init_std=options.embedding_init_std,
            seed=seed,
            shards=shards,
        )
        self.wide_weights = (
            [
                self.add_weight(shape=(len(layout.numerical), outputs), initializer="zeros", name="wide_numerical"),
                self.add_weight(shape=(outputs,), initializer="zeros", name="wide_bias"),
            ]
            if wide
            else []
        )
        self.make_layers(options, Style.of(options, compute_dtype), seed)

    def make_layers(self, options: ModelOptions, style: Style, seed: int) -> None:
        """Creates the layers between the deep input, `self.layout.width` wide, and the logits of `self.tasks`.

        Args:
            options: model flags.
            style: configuration of hidden layers.
            seed: seed of the model; layers use seeds from seed + 10,000.
        """
        raise TypeError(f"{type(self).__name__} makes no layers")

    def head(self, deep_input: tf.Tensor, training_pass: StepContext | None) -> tf.Tensor:
        """Computes the logits without the wide part.

        Args:
            deep_input: [batch, embedding width + numerical] float32.
            training_pass: None outside training.

        Returns:
            [batch, outputs] float32.
        """
        raise TypeError(f"{type(self).__name__} has no head")

    @property
    def deep_weights(self) -> list[keras.Variable]:
        """Trainable weights that belong neither to the tables nor to the wide part."""
        tables = {id(table) for table in self.embeddings.tables}
        wide = {id(weight) for weight in self.wide_weights}
        return [weight for weight in self.trainable_variables if id(weight) not in tables | wide]

    @property
    def shared_weights(self) -> list[keras.Variable]:
        """Dense weights that are trained by several tasks, those nearest to the tasks last."""
        return []

    def created(self) -> Self:
        """Creates all weights and returns the model. Keras creates some in the first call, which is a collective."""
        self(tf.zeros((1, self.layout.id_columns), tf.int32), tf.zeros((1, len(self.layout.numerical))))
        return self

    @property
    def parameters(self) -> int:
        """Number of parameters, including the rows of sharded tables on other workers."""
        tables = zip(self.embeddings.tables, self.embeddings.whole_rows.values(), strict=True)
        elsewhere = sum((rows - table.shape[0]) * table.shape[1] for table, rows in tables)
        return self.count_params() + elsewhere

    def gather(self, ids: tf.Tensor) -> EmbeddingRows:
        """Looks up the table rows of a batch. A collective if tables are sharded."""
        return self.embeddings.gather(ids)

    def deep_input(self, rows: EmbeddingRows, ids: tf.Tensor, numerical: tf.Tensor) -> tf.Tensor:
        """Returns the input of the head, [batch, embedding width + numerical] float32."""
        return tf.concat([*self.embeddings.pool_deep(rows, ids), numerical], axis=1)

    def logits(
        self, rows: EmbeddingRows, ids: tf.Tensor, numerical: tf.Tensor, training_pass: StepContext | None = None
    ) -> tf.Tensor:
        """Computes logits [batch, outputs] float32 from gathered rows."""
        logits = self.head(self.deep_input(rows, ids, numerical), training_pass=training_pass)
        if not self.wide_weights:
            return logits
        slopes, bias = self.wide_weights
        # [batch, outputs]; the wide part is float32 throughout.
        wide = self.embeddings.pool_wide(rows, ids) + tf.linalg.matmul(numerical, slopes.value)
        return logits + wide + bias.value

    def call(self, ids: tf.Tensor, numerical: tf.Tensor) -> tf.Tensor:
        """Computes logits [batch, outputs] float32, outside training.

        Args:
            ids: [batch, id columns] int32; padding is below 0.
            numerical: [batch, numerical] float32.
        """
        return self.logits(self.gather(ids), ids, numerical)

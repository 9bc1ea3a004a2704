"""What every ranking model has: embedding tables in front, the logits of tasks behind."""

from typing import Self

import keras
import tensorflow as tf

from trainer.embeddings.shards import Shards
from trainer.embeddings.tables import EmbeddingTables, Rows
from trainer.flags.model_options import ModelOptions
from trainer.layout import InputLayout
from trainer.models.layers import Style
from trainer.models.training_pass import TrainingPass
from trainer.tasks import Task


class RankingModel(keras.Model):
    """Ids and numbers in, logits out.

    logits = head([embeddings, numerical])  [+ b + sum of the ids' wide weights + numerical @ k, the wide part]

    A subclass implements `make_layers` and `head`. The training step calls `gather` and `logits` one after the other,
    because it differentiates with respect to the gathered rows; everybody else just calls the model.

    Args:
        options: the model's flags.
        layout: of the inputs.
        tasks: what is predicted; each has one logit, or one per class.
        compute_dtype: float32, float16 or bfloat16; weights, logits and loss are float32 in any case.
        seed: of the initial weights. Tables take the seeds from it on; dense layers start well behind them.
        shards: how large tables are dealt to workers; None where every worker has all rows.

    Attributes:
        always_wide: whether every task has a wide part, a linear model of all features, without --wide_part, too.
        trains_joint_probabilities: whether the loss of a task with `given` is that of both labels being 1, on all rows.
    """

    always_wide = False
    trains_joint_probabilities = False

    def __init__(
        self,
        options: ModelOptions,
        layout: InputLayout,
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
        """Makes the layers between the deep input, `self.layout.width` wide, and the logits of `self.tasks`.

        Args:
            options: the model's flags.
            style: of hidden layers.
            seed: of the model; layers start from 10,000 behind it.
        """
        raise TypeError(f"{type(self).__name__} makes no layers")

    def head(self, deep_input: tf.Tensor, training_pass: TrainingPass | None) -> tf.Tensor:
        """Logits [batch, outputs] float32, without the wide part.

        Args:
            deep_input: [batch, embedding width + numerical] float32.
            training_pass: None outside of training.
        """
        raise TypeError(f"{type(self).__name__} has no head")

    @property
    def deep_weights(self) -> list[keras.Variable]:
        """The dense weights that are not the wide part's."""
        tables = {id(table) for table in self.embeddings.tables}
        wide = {id(weight) for weight in self.wide_weights}
        return [weight for weight in self.trainable_variables if id(weight) not in tables | wide]

    @property
    def shared_weights(self) -> list[keras.Variable]:
        """The dense weights that learn from several tasks, those nearest to the tasks last."""
        return []

    def created(self) -> Self:
        """The model with all of its weights: Keras creates some in the first call. A collective, as every call is."""
        self(tf.zeros((1, self.layout.id_columns), tf.int32), tf.zeros((1, len(self.layout.numerical))))
        return self

    @property
    def parameters(self) -> int:
        """How many there are, over all workers."""
        tables = zip(self.embeddings.tables, self.embeddings.whole_rows.values(), strict=True)
        elsewhere = sum((rows - table.shape[0]) * table.shape[1] for table, rows in tables)
        return self.count_params() + elsewhere

    def gather(self, ids: tf.Tensor) -> Rows:
        """The table rows of a batch. A collective where tables are sharded."""
        return self.embeddings.gather(ids)

    def deep_input(self, rows: Rows, ids: tf.Tensor, numerical: tf.Tensor) -> tf.Tensor:
        """What the head reads, [batch, embedding width + numerical] float32."""
        return tf.concat([*self.embeddings.pool_deep(rows, ids), numerical], axis=1)

    def logits(
        self, rows: Rows, ids: tf.Tensor, numerical: tf.Tensor, training_pass: TrainingPass | None = None
    ) -> tf.Tensor:
        """Logits [batch, outputs] float32 from gathered rows."""
        logits = self.head(self.deep_input(rows, ids, numerical), training_pass=training_pass)
        if not self.wide_weights:
            return logits
        slopes, bias = self.wide_weights
        wide = self.embeddings.pool_wide(rows, ids) + tf.linalg.matmul(numerical, slopes.value)
        return logits + wide + bias.value

    def call(self, ids: tf.Tensor, numerical: tf.Tensor) -> tf.Tensor:
        """Logits [batch, outputs] float32, outside of training.

        Args:
            ids: [batch, id columns] int32, pads below 0.
            numerical: [batch, numerical] float32.
        """
        return self.logits(self.gather(ids), ids, numerical)

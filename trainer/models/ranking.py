"""What every ranking model has: embedding tables in front, one logit per task behind."""

import keras
import tensorflow as tf

from trainer.embeddings import EmbeddingTables, Rows
from trainer.layout import InputLayout


class RankingModel(keras.Model):
    """Ids and numbers in, logits out.

    A subclass implements `head`, and says in `wide_weights` which of its dense weights belong to the wide part.
    The training step calls `gather` and `logits` one after the other, because it differentiates with respect to
    the gathered rows; everybody else just calls the model.
    """

    def __init__(self, layout: InputLayout, tasks: tuple[str, ...], *, combiner: str, seed: int, name: str):
        super().__init__(name=name, dtype="float32")
        self.layout = layout
        self.task_names = tasks
        self.embeddings = EmbeddingTables(layout, tasks=len(tasks), combiner=combiner, seed=seed)

    def head(
        self, deep_input: tf.Tensor, wide_logit: tf.Tensor, numerical: tf.Tensor, dropout_seed: tf.Tensor | None
    ) -> tf.Tensor:
        """Logits [batch, tasks] float32.

        Args:
            deep_input: [batch, embedding width + numerical] float32.
            wide_logit: [batch, tasks] float32, summed over the ids.
            numerical: [batch, numerical] float32.
            dropout_seed: [2] int32 when training, None otherwise.
        """
        raise TypeError(f"{type(self).__name__} has no head")

    @property
    def wide_weights(self) -> list[keras.Variable]:
        """Dense weights of the wide part."""
        raise TypeError(f"{type(self).__name__} does not say which weights are wide")

    @property
    def deep_weights(self) -> list[keras.Variable]:
        """All other dense weights."""
        tables = {id(table) for table in (*self.embeddings.deep_tables, self.embeddings.wide_table)}
        wide = {id(weight) for weight in self.wide_weights}
        return [weight for weight in self.trainable_variables if id(weight) not in tables | wide]

    def gather(self, ids: tf.Tensor) -> Rows:
        """The table rows of a batch."""
        return self.embeddings.gather(ids)

    def logits(
        self, rows: Rows, ids: tf.Tensor, numerical: tf.Tensor, dropout_seed: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Logits [batch, tasks] float32 from gathered rows."""
        pooled = self.embeddings.pool_deep(rows, ids)
        return self.head(
            tf.concat([*pooled, numerical], axis=1), self.embeddings.pool_wide(rows, ids), numerical, dropout_seed
        )

    def call(self, ids: tf.Tensor, numerical: tf.Tensor, dropout_seed: tf.Tensor | None = None) -> tf.Tensor:
        """Logits [batch, tasks] float32.

        Args:
            ids: [batch, id columns] int32, pads below 0.
            numerical: [batch, numerical] float32.
            dropout_seed: [2] int32 when training, None otherwise.
        """
        return self.logits(self.gather(ids), ids, numerical, dropout_seed)

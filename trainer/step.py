"""One training step: rows -> logits -> loss -> gradients -> sum over workers -> update."""

from typing import NamedTuple

import keras
import tensorflow as tf

from trainer.distributed import Comm
from trainer.embeddings import Rows
from trainer.loss_scale import LossScale
from trainer.loss_weighting import LossWeighting
from trainer.losses import joint_labels, joint_logits, row_weights, task_losses
from trainer.models.ranking import RankingModel
from trainer.optimizers.optimizer import Optimizer
from trainer.tasks import Task
from trainer.touched_rows import TableUse, sum_over_workers


class StepInput(NamedTuple):
    """The tensors of a batch that a step needs.

    Attributes:
        ids: [batch, id columns] int32.
        numerical: [batch, numerical] float32.
        labels: [batch, tasks] float32, NaN where a label does not count.
        weights: [batch] float32, 0 for pads.
    """

    ids: tf.Tensor
    numerical: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor


class Gradients(NamedTuple):
    """What a step's forward and backward pass leave behind.

    Attributes:
        losses: [tasks] float32 shares of the mean loss of each task; after the sum over workers, the means over the
            global batch.
        weights: gradients of the dense weights and of the tables that are summed whole.
        touched: ids [n] and gradients [n, width] of the other tables.
    """

    losses: tf.Tensor
    weights: list[tf.Tensor]
    touched: list[tuple[tf.Tensor, tf.Tensor]]


class TrainStep:
    """A step as a function of the batch and the step's number.

    It is made of three parts, which the benchmark times apart: `compute`, `exchange` and `update`.

    Args:
        model: with its weights created.
        tasks: one per logit.
        weighting: makes one loss of several.
        wide, deep: optimizers of the wide and of the deep part.
        comm: the workers.
        loss_scale: factor of the loss under float16.
        global_batch_size: rows per step over all workers.
        seed: of dropout.
        xla: compile forward and backward pass.
    """

    def __init__(
        self,
        model: RankingModel,
        tasks: tuple[Task, ...],
        *,
        weighting: LossWeighting,
        wide: Optimizer,
        deep: Optimizer,
        comm: Comm,
        loss_scale: LossScale,
        global_batch_size: int,
        seed: int,
        xla: bool,
    ):
        self.model, self.comm, self.loss_scale, self.weighting = model, comm, loss_scale, weighting
        self.global_batch_size = global_batch_size
        self._owner = {"wide": wide, "deep": deep}
        dense = [("deep", name, weight) for name, weight in named(model.deep_weights).items()]
        dense += [("deep", name, weight) for name, weight in weighting.weights.items()]
        dense += [("wide", name, weight) for name, weight in named(model.wide_weights).items()]
        self._dense = [entry for entry in dense if 0 not in entry[2].shape]
        self._tables = table_uses(model, global_batch_size)
        self._seed = seed
        self._tasks = tasks
        self._forward_backward = tf.function(self._differentiate, jit_compile=xla)

    @tf.function
    def __call__(self, batch: StepInput, step: tf.Tensor) -> tf.Tensor:
        """Trains on one batch.

        Args:
            batch: this worker's rows.
            step: scalar int32, counts from 1 over the whole run.

        Returns:
            The mean loss of each task over the global batch, [tasks] float32.
        """
        gradients = self.exchange(self.compute(batch, step))
        self.update(gradients, step)
        return gradients.losses

    def compute(self, batch: StepInput, step: tf.Tensor) -> Gradients:
        """Forward and backward pass over this worker's rows."""
        counts = row_weights(self._trained_labels(batch.labels), batch.weights)
        totals = self.comm.sum_tensors([tf.reduce_sum(counts, axis=0)])[0]
        rows = self.model.gather(batch.ids)
        dropout_seed = tf.stack([tf.constant(self._seed * 1_000_003 % 2**31 + self.comm.rank), step * 64])
        factors, scale = self.weighting.factors(step), tf.convert_to_tensor(self.loss_scale.scale)
        losses, weight_gradients, row_gradients = self._forward_backward(
            rows, batch, counts, totals, dropout_seed, factors, scale
        )
        embeddings = self.model.embeddings
        ids = embeddings.deep_ids(batch.ids) + [embeddings.wide_ids(batch.ids) for _ in embeddings.wide_tables]
        touched = []
        for use, table_ids, gradient in zip(self._tables, ids, [*row_gradients.deep, *row_gradients.wide], strict=True):
            flat_ids, flat = tf.reshape(table_ids, [-1]), tf.reshape(gradient, [-1, use.width])
            if use.dense:
                weight_gradients.append(tf.math.unsorted_segment_sum(flat, flat_ids, use.rows))
            else:
                touched.append((flat_ids, flat))
        return Gradients(losses, weight_gradients, touched)

    def _trained_logits(self, logits: tf.Tensor) -> tf.Tensor:
        """The logits that the loss is taken of."""
        return joint_logits(logits, self._tasks) if self.model.trains_joint_probabilities else logits

    def _trained_labels(self, labels: tf.Tensor) -> tf.Tensor:
        """The labels that the loss is taken of."""
        return joint_labels(labels, self._tasks) if self.model.trains_joint_probabilities else labels

    def exchange(self, gradients: Gradients) -> Gradients:
        """Sums over workers."""
        losses, *weights = self.comm.sum_tensors([gradients.losses, *gradients.weights])
        return Gradients(losses, weights, sum_over_workers(gradients.touched, self.comm))

    def update(self, gradients: Gradients, step: tf.Tensor) -> None:
        """Applies summed gradients, unless one of them is not finite and the loss scale can be lowered."""
        if not self.loss_scale.dynamic:
            self._apply(gradients, step)
            return
        everything = [*gradients.weights, *(rows for _, rows in gradients.touched)]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in everything])
        inverse = 1.0 / self.loss_scale.scale
        unscaled = Gradients(
            gradients.losses,
            [gradient * inverse for gradient in gradients.weights],
            [(ids, rows * inverse) for ids, rows in gradients.touched],
        )
        tf.cond(finite, lambda: self._applied(unscaled, step), lambda: tf.constant(False))
        self.loss_scale.update(finite)

    def _applied(self, gradients: Gradients, step: tf.Tensor) -> tf.Tensor:
        self._apply(gradients, step)
        return tf.constant(True)

    def _apply(self, gradients: Gradients, step: tf.Tensor) -> None:
        whole = [(part, name) for part, name, _ in self._dense]
        whole += [(use.part, use.name) for use in self._tables if use.dense]
        for (part, name), gradient in zip(whole, gradients.weights, strict=True):
            self._owner[part].update_whole(name, gradient, step)
        sparse = [use for use in self._tables if not use.dense]
        for use, (ids, rows) in zip(sparse, gradients.touched, strict=True):
            self._owner[use.part].update_rows(use.name, ids, rows, step)

    def _differentiate(
        self,
        rows: Rows,
        batch: StepInput,
        counts: tf.Tensor,
        totals: tf.Tensor,
        dropout_seed: tf.Tensor,
        factors: tf.Tensor,
        scale: tf.Tensor,
    ) -> tuple[tf.Tensor, list[tf.Tensor], Rows]:
        weights = [weight for *_, weight in self._dense]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([rows, weights])
            logits = self.model.logits(rows, batch.ids, batch.numerical, dropout_seed)
            trained_logits, labels = self._trained_logits(logits), self._trained_labels(batch.labels)
            losses = task_losses(trained_logits, labels, counts, totals, self._tasks)
            trained = {name: tf.convert_to_tensor(weight) for name, weight in self.weighting.weights.items()}
            scaled = self.weighting.total(losses, trained, factors, self.comm.size) * scale
        weight_gradients, row_gradients = tape.gradient(
            scaled, (weights, rows), unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return losses, weight_gradients, row_gradients


def table_uses(model: RankingModel, global_batch_size: int) -> list[TableUse]:
    """How a step over `global_batch_size` rows uses each table: the deep ones in feature order, then the wide one."""
    embeddings = model.embeddings
    uses = [
        TableUse(table.path, "deep", columns.cardinality, columns.width, global_batch_size * columns.hotness)
        for table, columns in zip(embeddings.deep_tables, model.layout.categorical, strict=True)
    ]
    lookups = global_batch_size * model.layout.id_columns
    for table in embeddings.wide_tables:
        rows, tasks = table.shape
        uses.append(TableUse(table.path, "wide", rows, tasks, lookups))
    return uses


def named(variables: list[keras.Variable]) -> dict[str, tf.Variable]:
    """Path -> TensorFlow variable."""
    return {variable.path: variable.value for variable in variables}

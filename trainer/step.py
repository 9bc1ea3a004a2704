"""The training step: embedding rows -> logits -> loss -> gradients -> sum over workers -> update."""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

import tensorflow as tf

from trainer.comm import Comm
from trainer.embeddings.exchange import Choice, plan_tables, sum_by_row, sum_touched
from trainer.embeddings.tables import Rows
from trainer.models.ranking import RankingModel
from trainer.models.step_context import StepContext
from trainer.optimizers.loss_scale import LossScale
from trainer.optimizers.optimizer import Optimizer
from trainer.process.device import compiles_passes
from trainer.tasks.loss_weighting import LossWeighting
from trainer.tasks.losses import joint_labels, joint_logits, row_weights, task_losses
from trainer.weights import named, shared_weights

T = TypeVar("T")


class StepInput(NamedTuple):
    """The tensors of one worker's batch.

    Attributes:
        ids: categorical ids, [batch, id columns] int32.
        numerical: numerical features, [batch, numerical] float32.
        labels: labels, [batch, tasks] float32; NaN where a row does not count for a task.
        weights: sample weights, [batch] float32; 0 for padding rows.
    """

    ids: tf.Tensor
    numerical: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor


class Gradients(NamedTuple):
    """The results of a step's forward and backward pass, before or after the sum over workers.

    Attributes:
        losses: this worker's share of each task's mean loss, [tasks] float32; after the sum over workers, the mean
            losses over the global batch.
        weights: gradients of the dense weights, followed by those of the tables whose gradients are summed whole.
        touched: (distinct row numbers [n], gradients [n, width]) of each remaining table; after the sum, only of the
            rows that this worker updates.
        shared: one [tasks, values] float32 tensor, the flattened gradients of each task's loss with respect to the
            shared weights; empty if the loss weighting does not need them.
        moments: new values of the moving moments of batch normalization, identical on all workers.
        votes: sums of the workers' votes, [votes] float32.
        waited: seconds that this worker has spent in collectives, scalar float64.
    """

    losses: tf.Tensor
    weights: list[tf.Tensor]
    touched: list[tuple[tf.Tensor, tf.Tensor]]
    shared: list[tf.Tensor]
    moments: list[tf.Tensor]
    votes: tf.Tensor
    waited: tf.Tensor


class StepResult(NamedTuple):
    """The outputs of a training step.

    Attributes:
        losses: mean loss of each task over the global batch, [tasks] float32.
        votes: sums of the workers' votes, [votes] float32.
        waited: seconds that this worker has spent in collectives, scalar float64.
    """

    losses: tf.Tensor
    votes: tf.Tensor
    waited: tf.Tensor


class TrainStep:
    """A data-parallel training step, a function of the batch and the step number.

    It consists of three parts, `compute`, `exchange` and `update`, which appear under these names in graphs and
    profiles and are timed separately by the benchmark.

    Args:
        model: the model to train, with its weights created.
        weighting: method that combines the losses of several tasks into one.
        wide, deep: optimizers of the wide and of the deep part.
        comm: collectives over the workers.
        loss_scale: dynamic loss scale for float16; constantly 1 for other compute types.
        global_batch_size: rows per step over all workers.
        seed: seed of the dropout masks.
        xla: whether to compile the forward and backward pass with XLA; on a CPU, only element-wise operations.
        table_exchange: how to sum the gradients of tables that are not sharded: "whole", "rows", or "auto" for the
            cheaper of the two, table by table.
        fp16_allreduce: whether to send gradients of dense weights and of tables summed whole in float16.
    """

    def __init__(
        self,
        model: RankingModel,
        *,
        weighting: LossWeighting,
        wide: Optimizer,
        deep: Optimizer,
        comm: Comm,
        loss_scale: LossScale,
        global_batch_size: int,
        seed: int,
        xla: bool,
        table_exchange: Choice = "auto",
        fp16_allreduce: bool = False,
    ):
        self.model, self.comm, self.loss_scale, self.weighting = model, comm, loss_scale, weighting
        self._owner = {"wide": wide, "deep": deep}
        dense = [("deep", name, weight) for name, weight in named(model.deep_weights).items()]
        dense += [("deep", name, weight) for name, weight in weighting.weights.items()]
        dense += [("wide", name, weight) for name, weight in named(model.wide_weights).items()]
        # Empty tensors cannot be all-reduced.
        self._dense = [entry for entry in dense if 0 not in entry[2].shape]
        self._shared = shared_weights(model, weighting)
        self._tables = plan_tables(model.embeddings, global_batch_size, comm.size, table_exchange)
        self._allreduce_dtype = tf.float16 if fp16_allreduce else tf.float32
        self._moments = model.non_trainable_variables
        self._seed, self._xla, self._sees_clock = seed, xla, sees_clock()
        self._forward_backward = tf.function(self._differentiate, jit_compile=compiles_passes(xla))

    @tf.function
    def run(self, batch: StepInput, step: tf.Tensor, votes: tf.Tensor) -> StepResult:
        """Trains on one batch. A collective.

        Args:
            batch: this worker's rows.
            step: number of the step, counted from 1 over the whole run, scalar int32.
            votes: this worker's votes, [votes] float32. They join an all-reduce that the step needs anyway.
        """
        with tf.name_scope("compute"):
            gradients = self.compute(batch, step, votes)
        with tf.name_scope("exchange"):
            gradients = self.exchange(gradients)
        with tf.name_scope("update"):
            self.update(gradients, step)
        return StepResult(gradients.losses, gradients.votes, gradients.waited)

    def __call__(self, batch: StepInput, step: tf.Tensor) -> tf.Tensor:
        """Calls `run` without votes and returns the losses, [tasks] float32."""
        return self.run(batch, step, tf.zeros(0)).losses

    def compute(self, batch: StepInput, step: tf.Tensor, votes: tf.Tensor | None = None) -> Gradients:
        """Runs the forward and backward pass over this worker's rows."""
        counts = row_weights(self._trained_labels(batch.labels), batch.weights)  # [batch, tasks]
        # The losses are means over the global batch, so their denominators are summed before the forward pass. The
        # workers' shares of a loss then add up to its mean even where labels are missing or the last batch is short.
        own = [tf.reduce_sum(counts, axis=0), tf.reduce_sum(batch.weights), tf.zeros(0) if votes is None else votes]
        totals, waited = self._timed(own, self._sum_votes)
        # Deep: [batch, hotness, width] per feature; wide: [batch, id columns, outputs].
        rows = self.model.gather(batch.ids)
        # [2] int32, a different one for every worker and step: resuming needs no saved random state.
        dropout_seed = tf.stack([tf.constant((self._seed * 1_000_003 + self.comm.rank) % 2**31), step * 64])
        factors, scale = self.weighting.factors(step), tf.convert_to_tensor(self.loss_scale.scale)
        losses, weight_gradients, row_gradients, shared, moments = self._forward_backward(
            rows, batch, counts, totals, dropout_seed, factors, scale
        )
        touched = []
        numbers = self.model.embeddings.row_numbers(batch.ids)
        for use, ids, gradient in zip(self._tables, numbers, [*row_gradients.deep, *row_gradients.wide], strict=True):
            flat_ids, flat = tf.reshape(ids, [-1]), tf.reshape(gradient, [-1, use.width])  # [lookups], [lookups, width]
            if use.exchange == "whole":
                weight_gradients.append(tf.math.unsorted_segment_sum(flat, flat_ids, use.rows))  # [rows, width]
            else:
                touched.append(sum_by_row(flat_ids, flat))  # [n], [n, width]
        return Gradients(losses, weight_gradients, touched, shared, moments, totals[2], waited)

    def _sum_votes(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Sums tensors over workers, leaving out the last one, the votes, if it is empty: it cannot be all-reduced."""
        *sums, votes = tensors
        return self.comm.sum_tensors(tensors) if votes.shape[0] else [*self.comm.sum_tensors(sums), votes]

    def _timed(self, tensors: T, collective: Callable[[T], T]) -> tuple[T, tf.Tensor]:
        """Runs a collective and measures the seconds from when its inputs were ready until its results are.

        The time is 0 for a single worker and under deterministic TensorFlow, which does not allow clocks in a graph.
        """
        if self.comm.size == 1 or not self._sees_clock:
            return collective(tensors), tf.constant(0.0, tf.float64)
        # A graph has no program order: control dependencies alone keep the two timestamps around the collective.
        with tf.control_dependencies(tf.nest.flatten(tensors)):
            ready = tf.timestamp()
        with tf.control_dependencies([ready]):
            results = collective(tf.nest.map_structure(tf.identity, tensors))
        with tf.control_dependencies(tf.nest.flatten(results)):
            return results, tf.timestamp() - ready

    def _trained_logits(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the logits of the loss: joint instead of conditional ones if the model trains joint probabilities."""
        return joint_logits(logits, self.model.tasks) if self.model.trains_joint_probabilities else logits

    def _trained_labels(self, labels: tf.Tensor) -> tf.Tensor:
        """Returns the labels of the loss, which belong to the events of `_trained_logits`."""
        return joint_labels(labels, self.model.tasks) if self.model.trains_joint_probabilities else labels

    def exchange(self, gradients: Gradients) -> Gradients:
        """Sums losses and gradients over workers. A collective."""
        summed, waited = self._timed(gradients, self._summed)
        return summed._replace(waited=gradients.waited + waited)

    def _summed(self, gradients: Gradients) -> Gradients:
        # Separate groups: losses stay float32, weights may be float16, and touched rows are sent instead of summed.
        losses, *shared = self.comm.sum_tensors([gradients.losses, *gradients.shared])
        sent = [tf.cast(gradient, self._allreduce_dtype) for gradient in gradients.weights]
        weights = [tf.cast(gradient, tf.float32) for gradient in self.comm.sum_tensors(sent)]
        touched = sum_touched(self._tables, gradients.touched, self.comm, self.model.embeddings.shards)
        return gradients._replace(losses=losses, weights=weights, touched=touched, shared=shared)

    def update(self, gradients: Gradients, step: tf.Tensor) -> None:
        """Applies summed gradients. Under a dynamic loss scale, a step with non-finite gradients is skipped."""
        if not self.loss_scale.dynamic:
            self._apply(gradients, step)
            return
        everything = [*gradients.weights, *gradients.shared, *(rows for _, rows in gradients.touched)]
        broken = tf.reduce_any([tf.reduce_any(~tf.math.is_finite(gradient)) for gradient in everything])
        # Each worker sees only its own rows of a sharded table. All workers have to skip the same steps.
        if self.model.embeddings.sharded:
            broken = self.comm.sum_tensors([tf.cast(broken, tf.float32)])[0] > 0
        finite = ~broken
        inverse = 1.0 / self.loss_scale.scale
        unscaled = gradients._replace(
            weights=[gradient * inverse for gradient in gradients.weights],
            touched=[(ids, rows * inverse) for ids, rows in gradients.touched],
            shared=[gradient * inverse for gradient in gradients.shared],
        )
        tf.cond(finite, lambda: self._apply(unscaled, step), lambda: tf.constant(False))
        self.loss_scale.update(finite)

    def _apply(self, gradients: Gradients, step: tf.Tensor) -> tf.Tensor:
        # In the order of Gradients.weights, as `compute` builds it.
        whole = [(part, name) for part, name, _ in self._dense]
        whole += [(use.part, use.name) for use in self._tables if use.exchange == "whole"]
        replaced = self._combined(gradients, step)
        for (part, name), gradient in zip(whole, gradients.weights, strict=True):
            self._owner[part].update_whole(name, replaced.get(name, gradient), step)
        sparse = [use for use in self._tables if use.exchange != "whole"]
        for use, (ids, rows) in zip(sparse, gradients.touched, strict=True):
            self._owner[use.part].update_rows(use.name, ids, rows, step)
        for variable, value in zip(self._moments, gradients.moments, strict=True):
            variable.value.assign(value)
        return tf.constant(True)  # a branch of tf.cond has to return a tensor

    def _combined(self, gradients: Gradients, step: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the gradients, by weight name, that the loss weighting substitutes for those of shared weights."""
        if not gradients.shared:
            return {}
        combined = self.weighting.combine(gradients.shared[0], gradients.losses, step)
        if combined is None:
            return {}
        pieces = tf.split(combined, [weight.shape.num_elements() for weight in self._shared.values()])
        return {
            name: tf.reshape(piece, weight.shape)
            for (name, weight), piece in zip(self._shared.items(), pieces, strict=True)
        }

    def _differentiate(
        self,
        rows: Rows,
        batch: StepInput,
        counts: tf.Tensor,
        totals: list[tf.Tensor],
        dropout_seed: tf.Tensor,
        factors: tf.Tensor,
        scale: tf.Tensor,
    ) -> tuple[tf.Tensor, list[tf.Tensor], Rows, list[tf.Tensor], list[tf.Tensor]]:
        """Differentiates the loss with respect to dense weights and gathered rows: the part that XLA may compile.

        Returns:
            The losses [tasks], the dense gradients, the gradients of the rows (shaped like `rows`), the `shared` and
            the `moments` of Gradients.
        """
        weights = [weight for *_, weight in self._dense]
        training = StepContext(dropout_seed, tf.cast(batch.weights > 0, tf.float32), self._sum_over_workers, self._xla)
        # Differentiating gathered rows instead of tables keeps every gradient as small as the batch. A second use of
        # the tape is needed only for the gradients of single tasks.
        with tf.GradientTape(watch_accessed_variables=False, persistent=bool(self._shared)) as tape:
            tape.watch([rows, weights])
            # [batch, outputs] float32
            logits = self._trained_logits(self.model.logits(rows, batch.ids, batch.numerical, training))
            labels = self._trained_labels(batch.labels)  # [batch, tasks]
            losses = task_losses(logits, labels, counts, totals[0], self.model.tasks)  # [tasks]
            trained = {name: tf.convert_to_tensor(weight) for name, weight in self.weighting.weights.items()}
            total = self.weighting.total(losses, trained, factors, self.comm.size)
            for penalty in training.penalties:
                total += tf.math.divide_no_nan(tf.reduce_sum(penalty * batch.weights), totals[1])
            # Scaled inside the tape, before float16 gradients could underflow.
            scaled, each = total * scale, tf.unstack(losses * scale)
        zero = tf.UnconnectedGradients.ZERO
        weight_gradients, row_gradients = tape.gradient(scaled, (weights, rows), unconnected_gradients=zero)
        shared = list(self._shared.values())
        of_tasks = [tape.gradient(loss, shared, unconnected_gradients=zero) for loss in each] if shared else []
        flat = [tf.concat([tf.reshape(gradient, [-1]) for gradient in own], axis=0) for own in of_tasks]
        new = {variable.path: value for variable, value in training.moments}
        moments = [new[variable.path] for variable in self._moments]
        return losses, weight_gradients, row_gradients, [tf.stack(flat)] if flat else [], moments

    def _sum_over_workers(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Sums tensors over workers, differentiably.

        Every worker's loss depends on the sum, so the gradient of an input is the sum of all workers' upstream
        gradients.
        """
        if self.comm.size == 1:
            return tensors

        @tf.custom_gradient
        def summed(*own: tf.Tensor) -> tuple[list[tf.Tensor], Callable[..., list[tf.Tensor]]]:
            return self.comm.sum_tensors(list(own)), lambda *upstream: self.comm.sum_tensors(list(upstream))

        return list(summed(*tensors))


def sees_clock() -> bool:
    """Return whether TensorFlow operations may read the clock, which deterministic execution forbids."""
    with suppress(tf.errors.FailedPreconditionError):
        return bool(tf.timestamp())
    return False

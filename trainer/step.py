"""One training step: rows -> logits -> loss -> gradients -> sum over workers -> update."""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

import tensorflow as tf

from trainer.distributed import Comm
from trainer.embeddings.plan import Choice, plan_tables
from trainer.embeddings.tables import Rows
from trainer.embeddings.touched_rows import sum_by_row, sum_touched
from trainer.loss_scale import LossScale
from trainer.loss_weighting import LossWeighting
from trainer.losses import joint_labels, joint_logits, row_weights, task_losses
from trainer.models.ranking import RankingModel
from trainer.models.training_pass import TrainingPass
from trainer.optimizers.optimizer import Optimizer
from trainer.process.device import compiles_passes
from trainer.weights import named, shared_weights

T = TypeVar("T")


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
        touched: row numbers [n], each once, and gradients [n, width] of the other tables; after the sum, of the rows
            that this worker updates.
        shared: [tasks, values] float32, of each task's loss with respect to shared weights, flattened, where the loss
            weighting wants them; else nothing.
        moments: new values of batch normalisation's moving moments, the same on all workers.
        votes: [votes] float32, sums over workers of what each of them has cast.
        waited: scalar float64, seconds for which this worker has been in collectives.
    """

    losses: tf.Tensor
    weights: list[tf.Tensor]
    touched: list[tuple[tf.Tensor, tf.Tensor]]
    shared: list[tf.Tensor]
    moments: list[tf.Tensor]
    votes: tf.Tensor
    waited: tf.Tensor


class StepResult(NamedTuple):
    """What a step tells.

    Attributes:
        losses: [tasks] float32 mean loss of each task over the global batch.
        votes: see Gradients.
        waited: see Gradients.
    """

    losses: tf.Tensor
    votes: tf.Tensor
    waited: tf.Tensor


class TrainStep:
    """A step as a function of the batch and the step's number.

    It is made of three parts, which graphs and profiles name and the benchmark times: `compute`, `exchange`, `update`.

    Args:
        model: with its weights created.
        weighting: makes one loss of several.
        wide, deep: optimizers of the wide and of the deep part.
        comm: the workers.
        loss_scale: factor of the loss under float16.
        global_batch_size: rows per step over all workers.
        seed: of dropout.
        xla: compile forward and backward pass; on a CPU element-wise work alone.
        table_exchange: how gradients of tables that are not sharded are summed: whole, rows, or auto, the cheaper.
        fp16_allreduce: send gradients that are summed whole in float16.
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
        self._dense = [entry for entry in dense if 0 not in entry[2].shape]
        self._shared = shared_weights(model, weighting)
        self._tables = plan_tables(model.embeddings, global_batch_size, comm.size, table_exchange)
        self._allreduce_dtype = tf.float16 if fp16_allreduce else tf.float32
        self._moments = model.non_trainable_variables
        self._seed, self._xla, self._sees_clock = seed, xla, sees_clock()
        self._forward_backward = tf.function(self._differentiate, jit_compile=compiles_passes(xla))

    @tf.function
    def run(self, batch: StepInput, step: tf.Tensor, votes: tf.Tensor) -> StepResult:
        """Trains on one batch.

        Args:
            batch: this worker's rows.
            step: scalar int32, counts from 1 over the whole run.
            votes: [votes] float32, this worker's; they travel with what is summed anyway.
        """
        with tf.name_scope("compute"):
            gradients = self.compute(batch, step, votes)
        with tf.name_scope("exchange"):
            gradients = self.exchange(gradients)
        with tf.name_scope("update"):
            self.update(gradients, step)
        return StepResult(gradients.losses, gradients.votes, gradients.waited)

    def __call__(self, batch: StepInput, step: tf.Tensor) -> tf.Tensor:
        """`run` without votes; gives the losses."""
        return self.run(batch, step, tf.zeros(0)).losses

    def compute(self, batch: StepInput, step: tf.Tensor, votes: tf.Tensor | None = None) -> Gradients:
        """Forward and backward pass over this worker's rows."""
        counts = row_weights(self._trained_labels(batch.labels), batch.weights)
        own = [tf.reduce_sum(counts, axis=0), tf.reduce_sum(batch.weights), tf.zeros(0) if votes is None else votes]
        totals, waited = self._timed(own, self._sum_votes)
        rows = self.model.gather(batch.ids)
        dropout_seed = tf.stack([tf.constant(self._seed * 1_000_003 % 2**31 + self.comm.rank), step * 64])
        factors, scale = self.weighting.factors(step), tf.convert_to_tensor(self.loss_scale.scale)
        losses, weight_gradients, row_gradients, shared, moments = self._forward_backward(
            rows, batch, counts, totals, dropout_seed, factors, scale
        )
        touched = []
        numbers = self.model.embeddings.row_numbers(batch.ids)
        for use, ids, gradient in zip(self._tables, numbers, [*row_gradients.deep, *row_gradients.wide], strict=True):
            flat_ids, flat = tf.reshape(ids, [-1]), tf.reshape(gradient, [-1, use.width])
            if use.exchange == "whole":
                weight_gradients.append(tf.math.unsorted_segment_sum(flat, flat_ids, use.rows))
            else:
                touched.append(sum_by_row(flat_ids, flat))
        return Gradients(losses, weight_gradients, touched, shared, moments, totals[2], waited)

    def _sum_votes(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Sums over workers; an empty tensor cannot be summed."""
        *sums, votes = tensors
        return self.comm.sum_tensors(tensors) if votes.shape[0] else [*self.comm.sum_tensors(sums), votes]

    def _timed(self, tensors: T, collective: Callable[[T], T]) -> tuple[T, tf.Tensor]:
        """What a collective makes of tensors, and the seconds from when they were ready.

        0 for a lone worker, and where TensorFlow has to be deterministic, which lets no graph see a clock.
        """
        if self.comm.size == 1 or not self._sees_clock:
            return collective(tensors), tf.constant(0.0, tf.float64)
        with tf.control_dependencies(tf.nest.flatten(tensors)):
            ready = tf.timestamp()
        with tf.control_dependencies([ready]):
            results = collective(tf.nest.map_structure(tf.identity, tensors))
        with tf.control_dependencies(tf.nest.flatten(results)):
            return results, tf.timestamp() - ready

    def _trained_logits(self, logits: tf.Tensor) -> tf.Tensor:
        """The logits that the loss is taken of."""
        return joint_logits(logits, self.model.tasks) if self.model.trains_joint_probabilities else logits

    def _trained_labels(self, labels: tf.Tensor) -> tf.Tensor:
        """The labels that the loss is taken of."""
        return joint_labels(labels, self.model.tasks) if self.model.trains_joint_probabilities else labels

    def exchange(self, gradients: Gradients) -> Gradients:
        """Sums over workers."""
        summed, waited = self._timed(gradients, self._summed)
        return summed._replace(waited=gradients.waited + waited)

    def _summed(self, gradients: Gradients) -> Gradients:
        losses, *shared = self.comm.sum_tensors([gradients.losses, *gradients.shared])
        sent = [tf.cast(gradient, self._allreduce_dtype) for gradient in gradients.weights]
        weights = [tf.cast(gradient, tf.float32) for gradient in self.comm.sum_tensors(sent)]
        touched = sum_touched(self._tables, gradients.touched, self.comm, self.model.embeddings.shards)
        return gradients._replace(losses=losses, weights=weights, touched=touched, shared=shared)

    def update(self, gradients: Gradients, step: tf.Tensor) -> None:
        """Applies summed gradients, unless one of them is not finite and the loss scale can be lowered."""
        if not self.loss_scale.dynamic:
            self._apply(gradients, step)
            return
        everything = [*gradients.weights, *gradients.shared, *(rows for _, rows in gradients.touched)]
        broken = tf.reduce_any([tf.reduce_any(~tf.math.is_finite(gradient)) for gradient in everything])
        if self.model.embeddings.sharded:  # of which each worker sees its own rows only
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
        return tf.constant(True)  # a branch of tf.cond has to give something

    def _combined(self, gradients: Gradients, step: tf.Tensor) -> dict[str, tf.Tensor]:
        """What the loss weighting puts in the place of the shared weights' gradients, by name."""
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
        weights = [weight for *_, weight in self._dense]
        training = TrainingPass(dropout_seed, tf.cast(batch.weights > 0, tf.float32), self._sum_over_workers, self._xla)
        with tf.GradientTape(watch_accessed_variables=False, persistent=bool(self._shared)) as tape:
            tape.watch([rows, weights])
            logits = self._trained_logits(self.model.logits(rows, batch.ids, batch.numerical, training))
            labels = self._trained_labels(batch.labels)
            losses = task_losses(logits, labels, counts, totals[0], self.model.tasks)
            trained = {name: tf.convert_to_tensor(weight) for name, weight in self.weighting.weights.items()}
            total = self.weighting.total(losses, trained, factors, self.comm.size)
            for penalty in training.penalties:
                total += tf.math.divide_no_nan(tf.reduce_sum(penalty * batch.weights), totals[1])
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
        """Sums through which gradients flow: what a sum means to any worker's loss goes back to all workers."""
        if self.comm.size == 1:
            return tensors

        @tf.custom_gradient
        def summed(*own: tf.Tensor) -> tuple[list[tf.Tensor], Callable[..., list[tf.Tensor]]]:
            return self.comm.sum_tensors(list(own)), lambda *upstream: self.comm.sum_tensors(list(upstream))

        return list(summed(*tensors))


def sees_clock() -> bool:
    """Whether TensorFlow lets operations see a clock: not where it was told to be deterministic."""
    with suppress(tf.errors.FailedPreconditionError):
        return bool(tf.timestamp())
    return False

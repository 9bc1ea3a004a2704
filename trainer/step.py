"""The training step: embeddings -> logits -> losses -> gradients -> sums over workers -> update."""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from data.errors import DataError
from data.loading.batch import PAD, Batch
from trainer.comm import Comm, differentiable_sum, sees_clock, timed
from trainer.config import TrainingOptions
from trainer.embeddings.exchange import SparseExchange, plan_exchange
from trainer.embeddings.groups import Array, Lookups
from trainer.embeddings.shards import Routes
from trainer.embeddings.table_state import WEIGHT, HostState
from trainer.embeddings.tables import Pooled
from trainer.layout import RowValues
from trainer.models.ranking import RankingModel
from trainer.models.step_context import StepContext
from trainer.models.weights import kernels, named
from trainer.optimizers.loss_scale import LossScale
from trainer.optimizers.optimizer import Gradient, Optimizer
from trainer.packing import Packed, Packing
from trainer.process.device import compiles_passes, on_gpu
from trainer.tasks.group import GroupTask
from trainer.tasks.loss_weighting import LossWeighting
from trainer.tasks.losses import joint_labels, joint_logits, row_weights, task_losses
from trainer.tasks.task import Task, restrict_to_sample_space

T = TypeVar("T")
R = TypeVar("R")


class StepInput(NamedTuple, Generic[Array]):
    """One worker's batch as a step takes it, in NumPy arrays or tensors.

    Attributes:
        lookups: what each group of embedding tables looks up.
        values: what else the model reads of the rows.
        labels: labels, [batch, tasks] float32; NaN where a row does not count for a task.
        weights: sample weights, [batch] float32; 0 for padding rows.
        groups: the number of each row's group, [batch] int64, if a task compares the rows of groups; otherwise empty.
    """

    lookups: tuple[Lookups[Array], ...]
    values: RowValues
    labels: Array
    weights: Array
    groups: tuple[Array, ...] = ()


def step_input(
    batch: Batch, lookups: Sequence[Lookups[np.ndarray]], values: RowValues, tasks: Sequence[Task]
) -> StepInput[np.ndarray]:
    """Return the arrays of a loader's batch that a training step takes, which packs them (see `TrainStep.packing`).

    Args:
        batch: the batch.
        lookups: what each group of embedding tables looks up for its ids.
        values: what else the model reads of its rows (see `InputSchema.row_values`).
        tasks: the tasks of the model.
    """
    return StepInput(
        lookups=tuple(lookups),
        values=values,
        labels=restrict_to_sample_space(batch.labels, tasks),
        weights=batch.weights,
        groups=(_group_numbers(batch),) if any(isinstance(task, GroupTask) for task in tasks) else (),
    )


def _group_numbers(batch: Batch) -> np.ndarray:
    """Return the number of each row's group, [batch] int64: groups are runs of rows, every padding row is its own."""
    group = np.asarray(batch.group)
    begins = (np.diff(group, prepend=group[:1]) != 0) | (batch.rows == PAD)
    return np.cumsum(begins, dtype=np.int64) - begins[:1]


def input_spec(model: RankingModel, rows: int | None) -> StepInput[tf.TensorSpec]:
    """Return the types of a training step's input; `rows` is the number of rows of each batch, if it is fixed."""
    return StepInput(
        model.embeddings.lookup_specs(rows),
        model.value_specs(rows),
        tf.TensorSpec([rows, len(model.tasks)], tf.float32),
        tf.TensorSpec([rows], tf.float32),
        (tf.TensorSpec([rows], tf.int64),) if any(isinstance(task, GroupTask) for task in model.tasks) else (),
    )


class Gradients(NamedTuple):
    """The results of a step's forward and backward pass, before or after the sum over workers.

    Attributes:
        losses: this worker's share of each task's mean loss, [tasks] float32; after the sum over workers, the mean
            losses over the global batch.
        by_name: name of a weight or table -> its gradient, sparse for tables of which only some rows have one. After
            the sum, a sparse gradient has the rows that this worker updates.
        per_task: one [tasks, values] float32 tensor, the flattened gradients of each task's loss with respect to the
            shared weights; empty if the loss weighting does not need them.
        moments: new values of the moving moments of batch normalization, identical on all workers.
        routes: where the rows of sharded tables have come from.
    """

    losses: tf.Tensor
    by_name: dict[str, Gradient]
    per_task: list[tf.Tensor]
    moments: list[tf.Tensor]
    routes: Routes


class StepResult(NamedTuple):
    """The outputs of a training step.

    Attributes:
        losses: mean loss of each task over the global batch, [tasks] float32.
        control_flags: sums of the workers' control flags, [flags] float32.
        waited: seconds that this worker has spent in collectives, scalar float64: on a GPU, in the first one, and on a
            CPU, in that one and in the exchange of gradients. 0 for a single worker, and under deterministic
            TensorFlow, which does not allow clocks in a graph.
    """

    losses: tf.Tensor
    control_flags: tf.Tensor
    waited: tf.Tensor


class RunningLosses:
    """Losses kept on the device, so that the host does not have to wait for them in every step.

    Args:
        tasks: number of tasks.

    Attributes:
        is_finite: whether losses and gradients have been finite in all steps so far, bool variable. The step applies
            no update once it is False.
    """

    def __init__(self, tasks: int):
        self._sums = tf.Variable(tf.zeros(tasks, tf.float64), trainable=False)
        self.is_finite = tf.Variable(True, trainable=False)

    def set(self, sums: Sequence[float] = ()) -> None:
        """Set each task's sum of losses, at the beginning of an epoch or the resumed position in it.

        Args:
            sums: one number per task; empty for zeros.
        """
        self._sums.assign(list(sums) or tf.zeros_like(self._sums))

    def read(self) -> tuple[np.ndarray, bool]:
        """Wait for the last step that was started; return the sums of the losses [tasks] float64, and `is_finite`."""
        return self._sums.numpy(), bool(self.is_finite.numpy())

    def add(self, losses: tf.Tensor, is_finite: tf.Tensor) -> None:
        """Add a step's losses [tasks] float32; `is_finite` is a scalar bool. For use inside tf.function."""
        self._sums.assign_add(tf.cast(losses, tf.float64))
        self.is_finite.assign(self.is_finite & is_finite)


class TrainStep:
    """A data-parallel training step, a function of the packed batch and the step number.

    It consists of three parts, `forward_backward`, `exchange` and `update`, which graphs and profiles show as compute,
    exchange and update, and which the benchmark times separately.

    Args:
        model: the model to train, with its weights created.
        optimizer: optimizer of all weights and tables of the model, and of the loss weighting's weights.
        weighting: method that combines the losses of several tasks into one.
        loss_scale: dynamic loss scale for float16; constantly 1 for other compute types.
        options: the training flags, of which the step reads those of the batch size, the exchange, XLA and the seed.
        comm: collectives over the workers.
        batch_rows: number of rows of each of this worker's batches; None if it varies. Shapes that are known when the
            graph is built need no arithmetic in the step.

    Attributes:
        packing: packs the `StepInput` of a batch, in the loader's thread and ahead of the step.
        run: the step as a graph, a function of a packed batch, the step number and control flags (see `_run`).
        running_losses: the losses of the steps so far, and whether they were finite.
    """

    def __init__(
        self,
        model: RankingModel,
        optimizer: Optimizer,
        weighting: LossWeighting,
        loss_scale: LossScale,
        options: TrainingOptions,
        comm: Comm,
        batch_rows: int | None = None,
    ):
        self.model, self.optimizer, self.weighting = model, optimizer, weighting
        self.loss_scale, self.comm = loss_scale, comm
        self.running_losses = RunningLosses(len(model.tasks))
        # Empty tensors cannot be all-reduced.
        self._dense = {name: weight for name, weight in optimizer.weights.items() if 0 not in weight.shape}
        self._shared = shared_weights(model, weighting)
        self._exchange_plan = plan_exchange(
            model.embeddings, options.global_batch_size, comm.size, options.table_exchange
        )
        frozen, places = model.embeddings.frozen_groups, model.embeddings.cache_places
        self._on_host = optimizer.host_tables | {
            variable.path: HostState({WEIGHT: variable.value}, places[variable.path], read_only=True)
            for _, variable in frozen
            if variable.path in places
        }
        self._sparse = SparseExchange(model.embeddings, self._exchange_plan, comm)
        self._allreduce_dtype = tf.float16 if options.fp16_allreduce else tf.float32
        self._seed, self._xla, self._clip_norm = options.seed, options.xla, options.clip_norm
        # On a GPU, a clock makes the host wait. Only the wait for late workers, at the start of a step, is worth that.
        self._times_start = comm.size > 1 and sees_clock()
        self._times_exchange = self._times_start and not on_gpu()
        # Without AutoGraph: no Python control flow depends on tensors, and tracing is faster.
        self._differentiated = tf.function(
            self._differentiate, autograph=False, jit_compile=compiles_passes(options.xla)
        )
        # Without rows of tables: their number varies, and XLA compiles once for every shape.
        self._all_finite = tf.function(all_finite, autograph=False, jit_compile=compiles_passes(options.xla))
        self.packing = Packing(input_spec(model, batch_rows))
        # With a signature: the numbers of rows that batches look up vary, and must not cause another trace.
        signature = (self.packing.signature, tf.TensorSpec([], tf.int32), tf.TensorSpec([None], tf.float32))
        self.run = tf.function(self._run, input_signature=signature, autograph=False)

    def _run(self, packed: Packed, step: tf.Tensor, control_flags: tf.Tensor) -> StepResult:
        """Train on one batch. A collective.

        Args:
            packed: this worker's rows.
            step: number of the step, counted from 1 over the whole run, scalar int32.
            control_flags: this worker's control flags, [flags] float32, at least one. They are summed over the workers
                in an all-reduce that the step needs anyway.
        """
        with tf.name_scope("compute"):
            # The losses are means over the global batch, so their denominators are summed before the forward pass.
            # The workers' shares of a loss then add up to its mean even where labels are missing or a batch is short.
            started, waited = _timed(self._start, (packed, control_flags), measure=self._times_start)
            batch, row_counts, control_flags = started
            gradients = self.forward_backward(batch, step, row_counts)
        with tf.name_scope("exchange"):
            gradients, exchanged = _timed(self.exchange, gradients, measure=self._times_exchange)
        with tf.name_scope("update"):
            self.update(gradients, step)
        return StepResult(gradients.losses, control_flags, waited + exchanged)

    def __call__(self, batch: Packed, step: tf.Tensor) -> tf.Tensor:
        """Call `run` without control flags and return the losses, [tasks] float32."""
        return self.run(batch, step, tf.zeros(1)).losses

    def forget_cached(self) -> None:
        """Drop the device's copies of tables in host memory, which are about to be overwritten."""
        for table in self._on_host.values():
            table.forget()

    def _start(self, inputs: tuple[Packed, tf.Tensor]) -> tuple[StepInput[tf.Tensor], tf.Tensor, tf.Tensor]:
        """Unpack a batch, and sum its row counts, and control flags, over the workers. A collective."""
        packed, control_flags = inputs
        # After the clock has started, which must not wait for operations of a GPU.
        batch: StepInput[tf.Tensor] = self.packing.unpack(packed)
        row_counts, control_flags = self.comm.sum_tensors([self.row_counts(batch), control_flags])
        return batch, row_counts, control_flags

    def row_counts(self, batch: StepInput[tf.Tensor]) -> tf.Tensor:
        """Return the weight of this worker's rows that count for each task, then that of all, [tasks + 1] float32."""
        per_task = tf.reduce_sum(row_weights(self._labels(batch), batch.weights), axis=0)  # [tasks]
        return tf.concat([per_task, [tf.reduce_sum(batch.weights)]], axis=0)

    def forward_backward(self, batch: StepInput[tf.Tensor], step: tf.Tensor, row_counts: tf.Tensor) -> Gradients:
        """Compute losses and gradients of this worker's rows. A collective if tables are sharded.

        Args:
            batch: this worker's rows.
            step: number of the step.
            row_counts: `row_counts` of all workers' batches, summed.
        """
        embeddings, lookups = self.model.embeddings, batch.lookups
        routes = embeddings.routes(lookups)
        pooled = embeddings.pool(embeddings.sources(routes, lookups, self._on_host), lookups)
        # [2] int32, a different one for every worker and step: resuming needs no saved random state.
        dropout_seed = tf.stack([tf.constant((self._seed * 1_000_003 + self.comm.rank) % 2**31), step * 64])
        factors, scale = self.weighting.factors(step), tf.convert_to_tensor(self.loss_scale.scale)
        # Without the lookups, whose sizes vary: for every size, XLA or an eager step would build another graph, even of
        # what it does not use.
        rows = batch._replace(lookups=())
        gradients, of_pooled = self._differentiated(pooled, rows, row_counts, dropout_seed, factors, scale)
        of_rows = embeddings.spread(of_pooled, lookups)
        for (index, variable), values in zip(embeddings.group_variables, [*of_rows.deep, *of_rows.wide], strict=True):
            numbers = lookups[index].rows
            gradients.by_name[variable.path] = (
                tf.math.unsorted_segment_sum(values, numbers, variable.shape[0])  # [rows of the group, width]
                if self._exchange_plan[variable.path] == "whole"
                else tf.IndexedSlices(values, numbers)  # [n, width], [n]
            )
        return gradients._replace(routes=routes)

    def _differentiate(
        self,
        pooled: Pooled,
        batch: StepInput[tf.Tensor],
        row_counts: tf.Tensor,
        dropout_seed: tf.Tensor,
        factors: tf.Tensor,
        scale: tf.Tensor,
    ) -> tuple[Gradients, Pooled]:
        """Differentiate the loss with respect to dense weights and embeddings: the part that XLA may compile.

        Returns:
            The gradients of the dense weights, and those of the embeddings.
        """
        weights, shared = list(self._dense.values()), list(self._shared.values())
        embedded = pooled._replace(frozen=())  # what has gradients
        has_weight = tf.cast(batch.weights > 0, tf.float32)
        context = StepContext(dropout_seed, has_weight, lambda own: differentiable_sum(self.comm, own), self._xla)
        # Differentiating embeddings instead of tables keeps every gradient as small as the batch. A second use of the
        # tape is needed only for the gradients of single tasks.
        with tf.GradientTape(watch_accessed_variables=False, persistent=bool(shared)) as tape:
            tape.watch([embedded, weights])
            logits = self._logits(pooled, batch, context)  # [batch, outputs] float32
            losses = self._losses(logits, batch, row_counts[:-1])  # [tasks]
            trained = {name: tf.convert_to_tensor(weight) for name, weight in self.weighting.weights.items()}
            loss = self.weighting.total(losses, trained, factors, self.comm.size)
            for penalty in context.penalties:  # [batch]
                loss += tf.math.divide_no_nan(tf.reduce_sum(penalty * batch.weights), row_counts[-1])
            # Scaled inside the tape, before float16 gradients could underflow.
            scaled_loss, scaled_losses = loss * scale, tf.unstack(losses * scale)
        zero = tf.UnconnectedGradients.ZERO
        weight_gradients, of_pooled = tape.gradient(scaled_loss, (weights, embedded), unconnected_gradients=zero)
        per_task = [tape.gradient(own, shared, unconnected_gradients=zero) for own in scaled_losses] if shared else []
        flat = [tf.concat([tf.reshape(gradient, [-1]) for gradient in own], axis=0) for own in per_task]  # [values]
        moments = {variable.path: value for variable, value in context.moments}
        gradients = Gradients(
            losses,
            dict(zip(self._dense, weight_gradients, strict=True)),
            [tf.stack(flat)] if flat else [],
            [moments[variable.path] for variable in self.model.moving_moments],
            Routes({}, {}, {}),
        )
        return gradients, of_pooled

    def _logits(self, pooled: Pooled, batch: StepInput[tf.Tensor], context: StepContext) -> tf.Tensor:
        """Return the logits of the loss: joint instead of conditional ones if the model trains joint probabilities."""
        logits = self.model.logits(pooled, batch.values, context)
        return joint_logits(logits, self.model.tasks) if self.model.trains_joint_probabilities else logits

    def _labels(self, batch: StepInput[tf.Tensor]) -> tf.Tensor:
        """Return the labels of the events that `_logits` predicts, [batch, tasks] float32."""
        return joint_labels(batch.labels, self.model.tasks) if self.model.trains_joint_probabilities else batch.labels

    def _losses(self, logits: tf.Tensor, batch: StepInput[tf.Tensor], totals: tf.Tensor) -> tf.Tensor:
        """Return this worker's shares of the tasks' mean losses over the global batch, [tasks] float32."""
        labels = self._labels(batch)
        counts = row_weights(labels, batch.weights)
        groups = [tf.cast(own, tf.int32) for own in batch.groups]
        return task_losses(logits, labels, counts, totals, self.model.tasks, *groups)

    def exchange(self, gradients: Gradients) -> Gradients:
        """Sum losses and gradients over the workers. A collective."""
        sparse = {name: own for name, own in gradients.by_name.items() if isinstance(own, tf.IndexedSlices)}
        dense = {name: own for name, own in gradients.by_name.items() if name not in sparse}
        # Separate groups: losses stay float32, dense gradients may be float16, and rows are sent instead of summed.
        losses, *per_task = self.comm.sum_tensors([gradients.losses, *gradients.per_task])
        sums = self.comm.sum_tensors([tf.cast(gradient, self._allreduce_dtype) for gradient in dense.values()])
        by_name = {name: tf.cast(gradient, tf.float32) for name, gradient in zip(dense, sums, strict=True)}
        by_name |= self._sparse.sum(sparse, gradients.routes)
        return gradients._replace(losses=losses, by_name=by_name, per_task=per_task)

    def update(self, gradients: Gradients, step: tf.Tensor) -> None:
        """Apply summed gradients, unless a loss or a gradient of this step is not finite.

        From the first non-finite loss or gradient on, no step applies an update, so that the weights stay those of the
        last good step until the host reads `running_losses`. Under a dynamic loss scale, a non-finite gradient only
        skips its step and lowers the scale. A collective if tables are sharded.
        """
        rows = [own for own in gradients.by_name.values() if isinstance(own, tf.IndexedSlices)]
        whole = [own for own in gradients.by_name.values() if not isinstance(own, tf.IndexedSlices)]
        is_finite = all_finite([own.values for own in rows]) & self._all_finite([*whole, *gradients.per_task])
        # Each worker sees only its own rows of a sharded table, and all workers have to skip the same steps.
        if "shards" in self._exchange_plan.values():
            is_finite = self.comm.sum_tensors([tf.cast(~is_finite, tf.float32)])[0] == 0
        self.running_losses.add(
            gradients.losses, all_finite([gradients.losses]) & (is_finite | self.loss_scale.dynamic)
        )
        applies = self.running_losses.is_finite & is_finite
        tf.cond(applies, lambda: self._apply(gradients, step), lambda: tf.constant(False))
        self.loss_scale.update(is_finite)

    def _apply(self, gradients: Gradients, step: tf.Tensor) -> tf.Tensor:
        if self.loss_scale.dynamic:
            gradients = _scaled(gradients, 1.0 / self.loss_scale.scale)
        by_name = gradients.by_name | self._combined(gradients, step)
        if self._clip_norm is not None:
            # If the norm overflows float32, the update is zero.
            by_name = _times(by_name, self._clip_norm / tf.maximum(self._norm(by_name), self._clip_norm))
        self.optimizer.apply(by_name, step)
        for variable, value in zip(self.model.moving_moments, gradients.moments, strict=True):
            variable.value.assign(value)
        return tf.constant(True)  # a branch of tf.cond has to return a tensor

    def _norm(self, gradients: Mapping[str, Gradient]) -> tf.Tensor:
        """Return the Euclidean norm of all summed gradients together. A collective if tables are sharded."""
        squares = {
            name: tf.reduce_sum(tf.square(own.values if isinstance(own, tf.IndexedSlices) else own))
            for name, own in gradients.items()
        }
        # Each worker has the gradients of its own rows of a sharded table, and those of everything else.
        own_rows = [square for name, square in squares.items() if self._exchange_plan.get(name) == "shards"]
        whole = [square for name, square in squares.items() if self._exchange_plan.get(name) != "shards"]
        if own_rows:
            whole += self.comm.sum_tensors([tf.add_n(own_rows)])
        return tf.sqrt(tf.add_n(whole))

    def _combined(self, gradients: Gradients, step: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the gradients, by weight name, that the loss weighting substitutes for those of shared weights."""
        if not gradients.per_task:
            return {}
        combined = self.weighting.combine(gradients.per_task[0], gradients.losses, step)
        if combined is None:
            return {}
        pieces = tf.split(combined, [weight.shape.num_elements() for weight in self._shared.values()])
        return {
            name: tf.reshape(piece, weight.shape)
            for (name, weight), piece in zip(self._shared.items(), pieces, strict=True)
        }


def shared_weights(model: RankingModel, weighting: LossWeighting) -> dict[str, tf.Variable]:
    """Return the weights, by name, for which the loss weighting needs each task's gradient.

    Raises:
        DataError: the loss weighting needs such weights, but the model's tasks share none.
    """
    if weighting.wants == "nothing":
        return {}
    shared = named(model.shared_weights)
    if not shared:
        raise DataError(
            f"--loss_weighting: {model.name} has no dense weights that tasks share, whose gradients "
            "gradnorm and pcgrad compare; choose another method or another model"
        )
    last_kernel = kernels(shared)[-1]
    return shared if weighting.wants == "all" else {last_kernel: shared[last_kernel]}


def all_finite(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return whether all values of tensors are finite, scalar bool."""
    # TensorFlow sums numbers on all cores, and reduces booleans on one.
    broken = [tf.reduce_sum(tf.cast(~tf.math.is_finite(own), tf.float32)) for own in values]
    return tf.add_n(broken) == 0 if broken else tf.constant(True)


def _timed(collectives: Callable[[T], R], inputs: T, *, measure: bool) -> tuple[R, tf.Tensor]:
    """Run collectives; return their results and the seconds that they took, scalar float64, or 0 without measuring."""
    return timed(collectives, inputs) if measure else (collectives(inputs), tf.constant(0.0, tf.float64))


def _scaled(gradients: Gradients, factor: tf.Tensor) -> Gradients:
    """Return the gradients times a factor; losses and moments are left unchanged."""
    return gradients._replace(
        by_name=_times(gradients.by_name, factor), per_task=[own * factor for own in gradients.per_task]
    )


def _times(gradients: Mapping[str, Gradient], factor: tf.Tensor) -> dict[str, Gradient]:
    """Return dense and sparse gradients, by name, times a factor."""
    return {
        name: tf.IndexedSlices(own.values * factor, own.indices) if isinstance(own, tf.IndexedSlices) else own * factor
        for name, own in gradients.items()
    }

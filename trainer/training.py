"""Builds the optimizers, loss weighting and training step of a model from the flags."""

from typing import NamedTuple

from trainer.checkpoint.state import TrainState
from trainer.comm import Comm
from trainer.config import DeepOptimizer, TrainingOptions
from trainer.embeddings.shards import Shards
from trainer.models.ranking import RankingModel
from trainer.models.weights import kernels, named
from trainer.optimizers.loss_scale import LossScale
from trainer.optimizers.optimizer import Optimizer, ParameterGroup
from trainer.optimizers.rules import OPTIMIZERS, Ftrl
from trainer.optimizers.schedules import Constant, Schedule, make_schedule
from trainer.step import TrainStep
from trainer.tasks.loss_weighting import LOSS_WEIGHTINGS, LossWeighting


class Training(NamedTuple):
    """A model set up for training.

    Attributes:
        step: the training step.
        schedule: learning rate schedule of the deep part.
        state: all variables that a checkpoint holds.
    """

    step: TrainStep
    schedule: Schedule
    state: TrainState


def shards_of(options: TrainingOptions, comm: Comm) -> Shards | None:
    """Return how large tables are sharded over the workers, or None without --shard_embeddings."""
    return Shards(comm.rank, comm.size, comm.exchange_values) if options.shard_embeddings else None


def make_training(
    model: RankingModel,
    options: TrainingOptions,
    deep_optimizer: DeepOptimizer,
    *,
    steps_per_epoch: int,
    comm: Comm,
    compute_dtype: str,
) -> Training:
    """Build the training step, learning rate schedule and checkpointed state of a model.

    Args:
        model: the model to train, with its weights created.
        options: the training flags.
        deep_optimizer: settings of the deep part's optimizer, defaults resolved.
        steps_per_epoch: number of steps per epoch, in which schedules are defined.
        comm: collectives over the workers.
        compute_dtype: type of the forward and backward pass; float16 turns on dynamic loss scaling.

    Raises:
        DataError: the loss weighting does not fit the model.
    """
    weighting = LOSS_WEIGHTINGS[options.loss_weighting].from_options(model.tasks, options)
    schedule = make_schedule(deep_optimizer, steps_per_epoch, options.num_epochs)
    optimizer = Optimizer(_deep_group(model, options, deep_optimizer, schedule, weighting), _wide_group(model, options))
    loss_scale = LossScale(dynamic=compute_dtype == "float16")
    step = TrainStep(model, optimizer, weighting, loss_scale, options, comm)
    states = optimizer.state | loss_scale.state | weighting.weights | weighting.state
    # A table's optimizer slots have the rows of the table: they are sharded, saved and restored like it.
    by_rows = {table.path: (table.path, *optimizer.state_of(table.path)) for table in model.embeddings.tables}
    sharded = {name: rows for table, rows in model.embeddings.sharded.items() for name in by_rows[table]}
    tables = frozenset(name for names in by_rows.values() for name in names)
    variables = named(model.variables) | states
    return Training(step, schedule, TrainState(variables, comm, sharded, tables, unknown=frozenset(weighting.state)))


def _wide_group(model: RankingModel, options: TrainingOptions) -> ParameterGroup:
    tables = named(model.embeddings.wide_tables)
    return ParameterGroup(
        Ftrl(),
        Constant(options.linear_learning_rate),
        named(model.wide_weights),
        tables,
        l2=dict.fromkeys([*named(model.wide_weights[:1]), *tables], options.l2_reg_linear),
    )


def _deep_group(
    model: RankingModel,
    options: TrainingOptions,
    config: DeepOptimizer,
    schedule: Schedule,
    weighting: LossWeighting,
) -> ParameterGroup:
    """Return the group of everything outside the wide part, including the loss weighting's own weights."""
    weights, tables = named(model.deep_weights), named(model.embeddings.deep_tables)
    return ParameterGroup(
        OPTIMIZERS[config.rule].from_config(config),
        schedule,
        weights | weighting.weights,
        tables,
        l2=dict.fromkeys(tables, options.l2_reg_embedding) | dict.fromkeys(kernels(weights), options.l2_reg_dnn),
    )

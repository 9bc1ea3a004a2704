"""Builds what a run consists of: this worker's connection to the others, the model, and its training step and state."""

import os
from typing import NamedTuple

import numpy as np

from data.checks.sample import draw_sample, max_read
from data.errors import DataError
from data.loading.parquet import ParquetReader
from data.memory import available_memory
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL
from trainer.checkpoint.state import TrainState
from trainer.comm import Comm, connect
from trainer.config import Options
from trainer.embeddings.placement import HostTables
from trainer.embeddings.shards import Shards
from trainer.inputs import Inputs
from trainer.layout import InputSchema
from trainer.logging.profiling import start_timeline
from trainer.memory_needed import check_devices, place_tables
from trainer.model_size import shards_tables
from trainer.models import build_model
from trainer.models.ranking import RankingModel
from trainer.models.weights import kernels, named
from trainer.optimizers.loss_scale import LossScale
from trainer.optimizers.moving_average import MovingAverage
from trainer.optimizers.optimizer import Optimizer, ParameterGroup
from trainer.optimizers.rules import OPTIMIZERS, Ftrl
from trainer.optimizers.schedules import Constant, Schedule, make_schedule
from trainer.process import runtime
from trainer.process.affinity import set_affinity
from trainer.process.device import compiles_passes, gpu_memory, on_gpu
from trainer.process.worker_env import WorkerEnv, read_worker_env
from trainer.step import TrainStep
from trainer.step_memory import RunSize
from trainer.tasks.best_constant import best_constants
from trainer.tasks.loss_weighting import LOSS_WEIGHTINGS, LossWeighting
from trainer.tasks.shifts import without_negative_factor
from trainer.tasks.task import tasks_of
from trainer.variables import TableRows


def start_worker(config: Options, env: WorkerEnv) -> Comm:
    """Prepare this process for its run (CPU cores, device, seed) and connect it to the other workers.

    Raises:
        DataError: the flags do not work together on this device, or the workers do not form the group that the launcher
            announced.
    """
    # Before `prepare`, which sizes TensorFlow's thread pools by the CPUs that this worker is bound to.
    affinity = set_affinity(config.training.affinity, env.local_rank, env.local_size)
    device = runtime.prepare(env, config.training)
    if config.training.xla and config.model.batch_norm and env.size > 1 and on_gpu():
        raise DataError(
            f"--batch_norm over {env.size} workers sums moments in the middle of what --xla compiles on a GPU, "
            "which XLA cannot; remove one of the two flags"
        )
    start_timeline(config.run.horovod_timeline, env)  # Horovod reads it when it is initialized
    comm = connect(env)
    if comm.rank == 0:
        print(f"{comm.size} worker(s) on {device}, {runtime.compute_dtype(config.training)}; {affinity}", flush=True)
    return comm


def make_model(config: Options, data: Inputs, comm: Comm) -> RankingModel:
    """Build the configured model for the features and tasks of the data.

    It has its initial weights, unless the run restores a checkpoint, which overwrites them. Pretrained vectors are
    zeros (see `trainer.embeddings.pretrained`).

    Raises:
        DataError: the memory of the GPU or of the host is exceeded.
    """
    tasks = tasks_of(data.spec)
    shards = _shards(config, data.layout, sum(task.width for task in tasks), comm)
    device_bytes = gpu_memory() if on_gpu() else None  # which is not known before TensorFlow is imported
    run, is_sharded = data.size(config), shards is not None
    host = _host_tables(run, comm, sharded=is_sharded, device_bytes=device_bytes)
    if device_bytes is not None:
        launch = read_worker_env(os.environ)
        check_devices(run, launch, sharded=is_sharded, device_bytes=device_bytes, host=host)
    return build_model(
        config.model,
        data.layout,
        tasks,
        compute_dtype=runtime.compute_dtype(config.training),
        seed=config.training.seed,
        shards=shards,
        host=host,
        restored=config.run.restores,
    )


def _shards(config: Options, layout: InputSchema, outputs: int, comm: Comm) -> Shards | None:
    """Return how large tables are sharded; None if every worker holds all rows. A collective."""
    launch = read_worker_env(os.environ)
    available = gpu_memory() if on_gpu() else available_memory(launch.local_size)
    wanted = shards_tables(config, layout, outputs, launch, available)
    # Hosts may have different amounts of memory, but all workers have to shard if one does.
    workers_for_shards = comm.sum_array(np.array([wanted], np.int64))[0]
    return Shards(comm.rank, comm.size, comm.exchange_values) if workers_for_shards else None


def _host_tables(run: RunSize, comm: Comm, *, sharded: bool, device_bytes: int | None) -> HostTables:
    """Return the tables that are in host memory: on all workers those of the worker that has most. A collective."""
    own = place_tables(run, comm.size, sharded=sharded, device_bytes=device_bytes)
    # Devices may have different amounts of memory. All workers move the same groups first, so the most are a union.
    counts = comm.gather_rows(np.array([len(own.groups)], np.int64))
    if counts.max() == len(own.groups):
        return own
    return place_tables(run, comm.size, sharded=sharded, device_bytes=device_bytes, at_least=int(counts.max()))


def start_at_base_rates(config: Options, model: RankingModel, spec: FeatureSpec) -> None:
    """Set the last layer's biases to the constant predictions that fit a sample of the training labels best.

    Raises:
        DataError: a label file is damaged, or a label is out of range.
    """
    only_labels = spec.only(LABEL, with_sample_weight=True)
    sample = draw_sample(ParquetReader(only_labels, config.data.train_mapping), max_read=max_read(only_labels))
    if config.training.negatives == "logit":
        without_negative_factor(spec)(sample, 0)
    model.network.start_at(best_constants(model.tasks, sample.labels, sample.weights))


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


def make_training(
    config: Options, model: RankingModel, comm: Comm, steps_per_epoch: int, batch_rows: int | None = None
) -> Training:
    """Build the training step, learning rate schedule and checkpointed state of a model.

    Args:
        config: the resolved configuration.
        model: the model to train, with its weights created.
        comm: collectives over the workers.
        steps_per_epoch: number of steps per epoch; the schedule is defined in epochs.
        batch_rows: number of rows of each of this worker's batches; None if it varies.

    Raises:
        DataError: the loss weighting does not fit the model.
    """
    options = config.training
    weighting = LOSS_WEIGHTINGS[options.loss_weighting].from_options(model.tasks, options)
    schedule = make_schedule(config.deep_optimizer, steps_per_epoch, options.num_epochs)
    groups = _deep_group(config, model, schedule, weighting), *_wide_groups(config, model)
    average = MovingAverage(options.ema_momentum) if options.ema_momentum else None
    compiled = compiles_passes(options.xla)
    optimizer = Optimizer(
        *groups,
        average=average,
        restored=config.run.restores,
        compiled=compiled,
        cached=model.embeddings.cache_places,
    )
    loss_scale = LossScale(dynamic=runtime.compute_dtype(options) == "float16")
    step = TrainStep(model, optimizer, weighting, loss_scale, options, comm, batch_rows)
    # A table's optimizer state has the rows of the table: it is sharded, saved and restored like it.
    tables: dict[str, TableRows] = {}
    for _, variable in model.embeddings.group_variables:
        tables |= model.embeddings.split(variable.path, optimizer.table_state(variable.path))
    state = TrainState(
        model.weights_by_name
        | optimizer.weight_state
        | tables
        | loss_scale.state
        | weighting.weights
        | weighting.state,
        comm,
        unknown=frozenset(weighting.state),
    )
    return Training(step, schedule, state)


def _wide_groups(config: Options, model: RankingModel) -> tuple[ParameterGroup, ParameterGroup]:
    """Return the groups of the wide part: weights of features, which are regularized, and biases, which are not."""
    options = config.training
    schedule, features, biases = Constant(options.linear_learning_rate), model.wide_weights[:1], model.wide_weights[1:]
    # Twice: the flag is a factor of the sum of squares, and lambda_2 of half of it.
    regularized = Ftrl(l2=2 * options.l2_reg_linear)
    return (
        ParameterGroup(regularized, schedule, named(features), named(model.embeddings.wide_variables)),
        ParameterGroup(Ftrl(), schedule, named(biases)),
    )


def _deep_group(config: Options, model: RankingModel, schedule: Schedule, weighting: LossWeighting) -> ParameterGroup:
    """Return the group of everything outside the wide part, including the loss weighting's own weights."""
    options, optimizer = config.training, config.deep_optimizer
    weights, tables = named(model.deep_weights), named(model.embeddings.deep_variables)
    return ParameterGroup(
        OPTIMIZERS[optimizer.rule].from_config(optimizer),
        schedule,
        weights | weighting.weights,
        tables,
        l2=dict.fromkeys(tables, options.l2_reg_embedding) | dict.fromkeys(kernels(weights), options.l2_reg_dnn),
    )

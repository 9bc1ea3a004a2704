"""The sizes of a model's tables and dense weights, from its specification and flags alone. Imports no TensorFlow."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.memory import in_gibibytes
from trainer.config import ModelOptions, Options
from trainer.embeddings import SMALLEST_SHARDED
from trainer.embeddings.costs import shards_are_cheaper
from trainer.embeddings.groups import TableGroup, group_tables, group_vectors, group_wide
from trainer.layout import InputSchema
from trainer.optimizers.rules import OPTIMIZERS, Ftrl, UpdateRule
from trainer.process.worker_env import WorkerEnv
from trainer.tasks.task import Task

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class TableSize:
    """The size of an embedding table.

    Attributes:
        name: name of the table, or "wide" for all features' wide weights.
        rows, width: shape of the whole table, over all workers.
        weight_bytes: memory of one worker's rows.
        state_bytes: memory of their optimizer state.
        on_host: whether both are in host memory, although a step computes on a device.
    """

    name: str
    rows: int
    width: int
    weight_bytes: int
    state_bytes: int = 0
    on_host: bool = False

    @property
    def bytes(self) -> int:
        """Memory of one worker's rows, in training with their optimizer state."""
        return self.weight_bytes + self.state_bytes

    def __str__(self) -> str:
        return f"{self.name} ({self.rows:,} x {self.width}: {in_gibibytes(self.bytes)})"


def shards_tables(
    options: Options, layout: InputSchema, outputs: int, launch: WorkerEnv, available: int | None
) -> bool:
    """Return whether this worker needs large tables to be sharded, or is expected to train faster if they are.

    `--shard_embeddings auto` chooses shards where steps are expected to be faster with them, and where the tables of
    a worker would otherwise take more than half of the available memory. Evaluation and prediction only read the
    tables, so they replicate them if they can.

    Args:
        options: the resolved configuration.
        layout: layout of the model's input tensors.
        outputs: number of logits.
        launch: rank and size of this process as its launcher announced them.
        available: bytes of memory that this worker has for tables; None if it is not known.
    """
    training = options.training
    if training.shard_embeddings != "auto":
        return training.shard_embeddings == "on" and launch.size > 1
    if launch.size == 1:
        return False
    wide = outputs if options.model.has_wide_part else 0
    if (
        options.run.trains
        and training.table_exchange == "auto"
        and shards_are_cheaper(layout, wide, global_batch_size=training.global_batch_size, workers=launch.size)
    ):
        return True
    if available is None:
        return False
    tables = table_sizes(options, layout, outputs)
    return 2 * sum(table.bytes for table in tables) > available


def table_sizes(
    options: Options, layout: InputSchema, outputs: int, workers: int = 1, on_host: Collection[str] = ()
) -> list[TableSize]:
    """Return the sizes of all tables: the deep ones in the order of their features, those of vectors, the wide one.

    Args:
        options: the resolved configuration. Only a run that trains has optimizer state.
        layout: layout of the model's input tensors.
        outputs: number of logits.
        workers: number of workers over which large tables are sharded.
        on_host: names of the groups of tables in host memory. The wide weights in these are a size of their own.
    """
    deep, wide = rules_of(options)
    tables, features = _hosted(options, layout, on_host)
    copies = weight_copies(options)
    # The step of a row's last update is kept where rows or their state change in steps that do not look them up.
    has_steps = copies > 0, copies > 0 or (options.run.trains and options.training.l2_reg_embedding > 0)

    def own(rows: int) -> int:
        return -(-rows // workers) if rows >= SMALLEST_SHARDED else rows

    def size(
        name: str, rows: Sequence[int], width: int, rule: type[UpdateRule], has_step: bool, is_hosted: bool
    ) -> TableSize:
        of_row, held = width * (len(rule.slots) + copies) + (rule.has_time_decay or has_step), sum(map(own, rows))
        return TableSize(name, sum(rows), width, _FLOAT_BYTES * held * width, _FLOAT_BYTES * held * of_row, is_hosted)

    sizes = [size(name, [rows], width, deep, has_steps[1], name in tables) for name, rows, width, _ in layout.tables]
    sizes += [
        TableSize(name, rows, width, own(rows) * width * np.dtype(dtype).itemsize, on_host=name in tables)
        for (name, rows, width, _), dtype in layout.frozen_tables.items()
    ]
    if options.model.has_wide_part:
        for is_hosted in (False, True):
            rows = [table.rows for table in layout.wide_tables(outputs) if (table.name in features) == is_hosted]
            if rows or not is_hosted:
                sizes.append(size("wide", rows, outputs, wide, has_steps[0], is_hosted))
    return sizes


def large_groups(options: Options, layout: InputSchema, outputs: int, workers: int = 1) -> list[str]:
    """Return the names of the groups that may be in host memory, those of large tables: the largest one first.

    Args:
        options, layout, outputs, workers: see `table_sizes`.
    """
    deep, wide = _groups(options, layout)
    names = {group.name for group in (*deep, *wide) if group.tables[0].rows >= SMALLEST_SHARDED}

    def bytes_of(name: str) -> int:
        return sum(size.bytes for size in table_sizes(options, layout, outputs, workers, {name}) if size.on_host)

    return sorted(sorted(names), key=bytes_of, reverse=True)


def _groups(options: Options, layout: InputSchema) -> tuple[tuple[TableGroup, ...], tuple[TableGroup, ...]]:
    """Return the groups of deep tables and of vectors, and those of wide weights, of which some are deep ones, too."""
    deep = group_tables(layout, SMALLEST_SHARDED)
    wide = group_wide(layout, deep, SMALLEST_SHARDED) if options.model.has_wide_part else ()
    return (*deep, *group_vectors(layout)), wide


def _hosted(options: Options, layout: InputSchema, on_host: Collection[str]) -> tuple[set[str], set[str]]:
    """Return the names of the tables in some groups, and of the features whose wide weights are in them."""
    deep, wide = _groups(options, layout)
    tables = {table.name for group in deep if group.name in on_host for table in group.tables}
    return tables, {feature.name for group in wide if group.name in on_host for feature in group.features}


def dense_weights(options: ModelOptions, layout: InputSchema, tasks: tuple[Task, ...]) -> int:
    """Return about how many dense weights a model has: those of its kernels."""
    widths = {task.name: task.width for task in tasks}
    return options.dense_weights(options.network_width(layout), widths) + options.vector_weights(layout)


def rules_of(options: Options) -> tuple[type[UpdateRule], type[UpdateRule]]:
    """Return the update rules of the deep and of the wide part; a plain `UpdateRule`, without state, if none trains."""
    return (OPTIMIZERS[options.deep_optimizer.rule], Ftrl) if options.run.trains else (UpdateRule, UpdateRule)


def weight_copies(options: Options) -> int:
    """Return how many further copies of the weights a run holds: with averages, these and a copy while it evaluates."""
    return 2 if options.run.trains and options.training.ema_momentum else 0


def may_use_gpu(cpu: bool) -> bool:
    """Return whether there is a GPU that TensorFlow may use, judged without importing it.

    Args:
        cpu: value of the flag --cpu.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    return not cpu and not hidden and Path("/dev/nvidiactl").exists()

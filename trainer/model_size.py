"""Memory estimate of a model from its specification and flags alone. Imports no TensorFlow.

The estimate is a lower bound: weights, optimizer accumulators and the logits of one batch. Activations and gradients
come on top, so a run that passes the check may still be too large.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.memory import available_memory, check_fits, in_gibibytes
from trainer.config import ModelOptions, Options
from trainer.embeddings import SMALLEST_SHARDED
from trainer.embeddings.costs import shards_are_cheaper
from trainer.layout import InputSchema
from trainer.optimizers.rules import OPTIMIZERS, Ftrl, UpdateRule
from trainer.process.worker_env import WorkerEnv
from trainer.tasks.task import Task

TABLES_SHOWN = 3
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class TableSize:
    """The size of an embedding table.

    Attributes:
        name: name of the table, or "wide" for all features' wide weights.
        rows, width: shape of the whole table, over all workers.
        bytes: memory of one worker's rows in bytes, in training with their optimizer state.
    """

    name: str
    rows: int
    width: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.name} ({self.rows:,} x {self.width}: {in_gibibytes(self.bytes)})"


def check_model_fits(
    options: Options, layout: InputSchema, tasks: tuple[Task, ...], launch: WorkerEnv, batch_rows: int
) -> None:
    """Check that the workers of this host can hold the model together, before any of it is allocated.

    With a GPU nothing is checked: the tables are in its memory, whose size is unknown before TensorFlow is imported.

    Args:
        options: the resolved configuration.
        layout: layout of the model's input tensors.
        tasks: the tasks, one per label.
        launch: rank and size of this process as its launcher announced them.
        batch_rows: number of rows of this worker's batches.

    Raises:
        DataError: the model does not fit; the message names its largest tables, the memory needed and that available.
    """
    # When a checkpoint is restored, only rank 0 knows the model's flags at this point.
    if may_use_gpu(options.training.cpu) or (options.run.restores and launch.rank != 0):
        return
    outputs = sum(task.width for task in tasks)
    workers = 1 if options.training.shard_embeddings == "off" else launch.size
    rule = options.deep_optimizer.rule if options.run.trains else None
    copies = _copies(options)
    tables = table_sizes(options.model, layout, outputs, rule=rule, workers=workers, copies=copies)
    widths = {task.name: task.width for task in tasks}
    weights = options.model.dense_weights(options.model.network_width(layout), widths)
    dense = (weights + options.model.vector_weights(layout)) * _bytes_per_weight(rule, copies)
    largest = sorted(tables, key=lambda table: table.bytes, reverse=True)[:TABLES_SHOWN]
    state = " with the optimizer's state" if rule else ""
    named = f"tables{state}: {', '.join(map(str, largest))}; " if largest else ""
    check_fits(
        sum(table.bytes for table in tables) + dense + batch_rows * outputs * _FLOAT_BYTES,
        f"the model ({named}dense weights{state}: {in_gibibytes(dense)}; {outputs:,} outputs)",
        "choose narrower embeddings (--embedding_sizes_file, or embedding_dim in the specification) or layers, "
        "--shard_embeddings over more hosts, or more memory",
        processes=launch.local_size,
    )


def shards_tables(options: Options, layout: InputSchema, outputs: int, launch: WorkerEnv) -> bool:
    """Return whether this worker needs large tables to be sharded, or is expected to train faster if they are.

    `--shard_embeddings auto` chooses shards where steps are expected to be faster with them, and where the tables of
    this host's workers would otherwise take more than half of the available memory. Evaluation and prediction only read
    the tables, so they replicate them if they can.

    Args:
        options: the resolved configuration.
        layout: layout of the model's input tensors.
        outputs: number of logits.
        launch: rank and size of this process as its launcher announced them.
    """
    training = options.training
    if training.shard_embeddings != "auto":
        return training.shard_embeddings == "on"
    if launch.size == 1:
        return False
    wide = outputs if options.model.has_wide_part else 0
    if (
        options.run.trains
        and training.table_exchange == "auto"
        and shards_are_cheaper(layout, wide, global_batch_size=training.global_batch_size, workers=launch.size)
    ):
        return True
    rule = options.deep_optimizer.rule if options.run.trains else None
    tables = table_sizes(options.model, layout, outputs, rule=rule, copies=_copies(options))
    needed = sum(table.bytes for table in tables)
    return not may_use_gpu(training.cpu) and 2 * needed > available_memory(launch.local_size)


def table_sizes(
    options: ModelOptions, layout: InputSchema, outputs: int, *, rule: str | None, workers: int = 1, copies: int = 0
) -> list[TableSize]:
    """Return the sizes of all tables: the deep ones in the order of their features, those of vectors, the wide one.

    Args:
        options: the model's flags.
        layout: layout of the model's input tensors.
        outputs: number of logits.
        rule: update rule of the deep part; None if the model is not trained.
        workers: number of workers over which large tables are sharded.
        copies: further copies of the weights that are held.
    """
    # A plain UpdateRule has no state.
    deep, wide = (UpdateRule, UpdateRule) if rule is None else (OPTIMIZERS[rule], Ftrl)

    def own(rows: int) -> int:
        return rows // workers if rows >= SMALLEST_SHARDED else rows

    sizes = [
        TableSize(name, rows, width, own(rows) * _bytes_per_row(width, deep, copies))
        for name, rows, width, _ in layout.tables
    ]
    sizes += [
        TableSize(name, rows, width, own(rows) * width * np.dtype(dtype).itemsize)
        for (name, rows, width, _), dtype in layout.frozen_tables.items()
    ]
    if options.has_wide_part:
        rows = [table.rows for table in layout.wide_tables(outputs)]
        held = sum(map(own, rows)) * _bytes_per_row(outputs, wide, copies)
        sizes.append(TableSize("wide", sum(rows), outputs, held))
    return sizes


def _copies(options: Options) -> int:
    """Return how many further copies of the weights a run holds: with averages, these and a copy while it evaluates."""
    return 2 if options.run.trains and options.training.ema_momentum else 0


def _bytes_per_row(width: int, rule: type[UpdateRule], copies: int) -> int:
    """Return the bytes of a table row with its optimizer state, which may have the step of the row's last update."""
    return _FLOAT_BYTES * (width * (1 + len(rule.slots) + copies) + (rule.has_time_decay or copies > 0))


def may_use_gpu(cpu: bool) -> bool:
    """Return whether there is a GPU that TensorFlow may use, judged without importing it.

    Args:
        cpu: value of the flag --cpu.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    return not cpu and not hidden and Path("/dev/nvidiactl").exists()


def _bytes_per_weight(rule: str | None, copies: int) -> int:
    return _FLOAT_BYTES * (1 + copies + (0 if rule is None else len(OPTIMIZERS[rule].slots)))

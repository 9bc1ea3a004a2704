"""How much memory a model takes, from the specification and the flags alone. Imports no TensorFlow.

Counted is what is allocated for certain: weights, the accumulators of their optimizers, and the logits of one batch.
Activations and gradients come on top, so that a run that passes may still be too large.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from data.memory import check_fits, in_gibibytes
from trainer.flags.model_options import ModelOptions
from trainer.flags.options import Options
from trainer.layout import InputLayout
from trainer.process.launcher import Launch
from trainer.tasks import Task

# Under --shard_embeddings, smaller tables are held by every worker: with a width of 128 such a table takes 2 MB.
SMALLEST_SHARDED = 4096
TABLES_SHOWN = 3
_FLOAT_BYTES = 4
# Accumulators per weight of each rule (trainer/optimizers/rules.py), and whether every row of a table has a step.
_SLOTS = {"rmsprop": (1, True), "adam": (2, True), "adamw": (2, True), "adagrad": (1, False), "sgd": (0, False)}
_WIDE_SLOTS = (2, False)  # FTRL's
_NO_SLOTS = (0, False)


@dataclass(frozen=True)
class TableSize:
    """A table as one worker holds it.

    Attributes:
        name: of the feature, or "wide".
        rows, width: of the whole table.
        bytes: of this worker's rows, with their optimizer's state in training.
    """

    name: str
    rows: int
    width: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.name} ({self.rows:,} x {self.width}: {in_gibibytes(self.bytes)})"


def check_model_fits(
    options: Options, layout: InputLayout, tasks: tuple[Task, ...], launch: Launch, batch_rows: int
) -> None:
    """Refuses a model that this host's workers cannot hold together, before any of it is allocated.

    On a GPU the tables lie in its memory, of which nothing is known before TensorFlow is imported: nothing is compared.

    Args:
        options: of the run.
        layout: of the model's inputs.
        tasks: one per label.
        launch: this process among its workers.
        batch_rows: of this worker.

    Raises:
        DataError: naming the largest tables, what is needed and what is available.
    """
    # Of a run that restores, only the first worker has the model's flags.
    if may_use_gpu(options.training.cpu) or (options.run.restores and launch.rank != 0):
        return
    outputs = sum(task.width for task in tasks)
    workers = launch.size if options.training.shard_embeddings else 1
    rule = options.deep_optimizer.rule if options.run.trains else None
    tables = table_sizes(options.model, layout, outputs, rule=rule, workers=workers)
    dense = dense_weights(options.model, layout, tasks) * _bytes_per_weight(rule)
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


def table_sizes(
    options: ModelOptions, layout: InputLayout, outputs: int, *, rule: str | None, workers: int = 1
) -> list[TableSize]:
    """Every table: the deep ones in feature order, then the wide one.

    Args:
        options: of the model.
        layout: of its inputs.
        outputs: number of logits.
        rule: of the deep part's optimizer; None without training.
        workers: over which large tables are sharded.
    """
    deep, wide = (_NO_SLOTS, _NO_SLOTS) if rule is None else (_SLOTS[rule], _WIDE_SLOTS)
    shapes = [(columns.name, columns.cardinality, columns.width, deep) for columns in layout.categorical]
    if options.wide_part or options.model == "wide_deep":
        shapes.append(("wide", max(1, sum(columns.cardinality for columns in layout.categorical)), outputs, wide))
    sizes = []
    for name, rows, width, (slots, has_steps) in shapes:
        own = rows // workers if rows >= SMALLEST_SHARDED else rows
        sizes.append(TableSize(name, rows, width, own * (width * (1 + slots) + has_steps) * _FLOAT_BYTES))
    return sizes


def dense_weights(options: ModelOptions, layout: InputLayout, tasks: Sequence[Task]) -> int:
    """How many weights the kernels of the dense layers have at least, for certain."""
    outputs = sum(task.width for task in tasks)
    if options.model == "wide_deep":
        return _chain(layout.width, *options.deep_hidden_units, outputs)
    units = options.expert_hidden_units
    towers = [_chain(units[-1], *options.tower_units(task.name), task.width) for task in tasks]
    experts = options.num_experts if options.model in ("omoe", "mmoe") else 1
    return experts * _chain(layout.width, *units) + sum(towers)


def may_use_gpu(cpu: bool) -> bool:
    """Whether there is a GPU that TensorFlow may compute on.

    Args:
        cpu: the flag --cpu.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    return not cpu and not hidden and Path("/dev/nvidiactl").exists()


def _bytes_per_weight(rule: str | None) -> int:
    return _FLOAT_BYTES * (1 + (0 if rule is None else _SLOTS[rule][0]))


def _chain(*units: int) -> int:
    return sum(before * after for before, after in pairwise(units))

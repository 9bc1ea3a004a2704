"""What a training step of Wide & Deep takes on one worker: FLOPs, bytes of memory, bytes sent. Imports no TensorFlow.

Everything is counted from a specification's layout and the flags of main.py, as trainer/step.py works on a GPU with
`--xla`. How many distinct rows a batch looks up depends on the data: here ids are uniform and lists are full, which
gives the most rows; ids of click logs are skewed, and look up fewer.

Bytes of memory are passes over tensors that do not fit a GPU's cache, each value read or written counted once. An
operation that XLA fuses into its neighbour takes no pass of its own. Passes of a value that is

    an id's row         gathered (2: read, write), its gradient gathered in the order of rows (2) and summed (1); in
                        groups with lists also summed over the ids of a feature (2)
    a unit of a layer   written by the product; read and written by bias, relu and dropout; backward: result and
                        gradient read, one written; read by the sum of the bias, and by both products: 9
    an input of a layer read by the product, and by that of the weights' gradient; its own gradient written: 3
    a gradient          written (1), cast to float16 and back where it is sent so (3), copied into and out of Horovod's
                        buffer (4 of the sent type), checked (1), unscaled under a dynamic loss scale (2)
    a dense weight      gradient read, weight and slots read and written
    a table, whole      the same, and the gradient read once more for the rows that have one
    a row of a table    gradient read, weight and slots gathered (2), updated (2) and scattered (2)
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, cast

from data.errors import DataError
from trainer.config import Options
from trainer.embeddings import SMALLEST_SHARDED
from trainer.embeddings.costs import Exchange, cheaper_exchange, expected_distinct, shards_are_cheaper, traffic_of
from trainer.embeddings.groups import TableGroup, group_tables, group_wide
from trainer.layout import InputSchema
from trainer.models.wide_deep import WideDeepOptions
from trainer.optimizers.rules import OPTIMIZERS, Ftrl
from trainer.tasks.loss_weighting import LOSS_WEIGHTINGS
from trainer.tasks.task import Task

FLOAT, HALF, INT64 = 4, 2, 8  # bytes
CONTROL_FLAGS = 1


class TableVariable(NamedTuple):
    """A variable with the rows of a group of tables: its embeddings or its wide weights.

    Attributes:
        group: number of the group.
        rows: number of rows over all workers.
        width: values per row.
        slots: accumulators per value.
        exchange: how its gradient is summed over the workers.
    """

    group: int
    rows: int
    width: int
    slots: int
    exchange: Exchange


@dataclass(frozen=True)
class StepCounts:
    """Counts of one worker's share of a step.

    Args:
        options: the flags of main.py.
        layout: layout of the features.
        tasks: the tasks, one per label.
        workers: number of workers.
        smallest: number of rows from which tables are sharded.

    Raises:
        DataError: the configuration has parts that are not counted.
    """

    options: Options
    layout: InputSchema
    tasks: tuple[Task, ...]
    workers: int
    smallest: int = SMALLEST_SHARDED

    def __post_init__(self) -> None:
        model, layout = self.options.model, self.layout
        uncounted = {
            "--model": not isinstance(model, WideDeepOptions),
            "--interaction": model.interaction != "none",
            "--batch_norm": model.batch_norm,
            "--loss_weighting": LOSS_WEIGHTINGS[self.options.training.loss_weighting].wants != "nothing",
            "sequences": bool(layout.sequences),
            "weights of ids": bool(layout.weighted),
            "vectors": bool(layout.vector_dimensions),
            "features known only in training": bool(layout.training_only.names),
        }
        if found := [name for name, is_used in uncounted.items() if is_used]:
            raise DataError(f"{', '.join(found)}: not counted; only Wide & Deep without these is")

    # The configuration

    @property
    def batch(self) -> float:
        """Rows of a worker's batch."""
        return self.options.training.global_batch_size / self.workers

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return sum(task.width for task in self.tasks)

    @property
    def is_half(self) -> bool:
        """Whether the hidden layers compute in 2 bytes."""
        return self.options.training.amp

    @property
    def is_scaled(self) -> bool:
        """Whether gradients have a dynamic loss scale."""
        return self.is_half and self.options.training.amp_dtype != "bfloat16"

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the deep input, of each hidden layer, and of the head."""
        model = cast(WideDeepOptions, self.options.model)
        return (model.network_width(self.layout), *model.deep_hidden_units, self.outputs)

    @cached_property
    def shards(self) -> bool:
        """Whether large tables are sharded: where this is faster, unless a flag says so."""
        training = self.options.training
        if self.workers == 1 or training.shard_embeddings != "auto":
            return self.workers > 1 and training.shard_embeddings == "on"
        batch, workers = training.global_batch_size, self.workers
        return training.table_exchange == "auto" and shards_are_cheaper(
            self.layout, self.outputs, global_batch_size=batch, workers=workers
        )

    @cached_property
    def _deep_groups(self) -> tuple[TableGroup, ...]:
        return group_tables(self.layout, self.smallest)

    @cached_property
    def _wide_groups(self) -> tuple[TableGroup, ...]:
        return group_wide(self.layout, self._deep_groups, self.smallest)

    @cached_property
    def groups(self) -> tuple[TableGroup, ...]:
        """The groups of tables, in the order of `EmbeddingTables`."""
        return (*self._deep_groups, *(group for group in self._wide_groups if group not in self._deep_groups))

    @cached_property
    def tables(self) -> tuple[TableVariable, ...]:
        """The variables of the groups: deep ones, then wide ones."""
        slots = len(OPTIMIZERS[self.options.deep_optimizer.rule].slots)
        found = [(group, group.width, slots) for group in self._deep_groups]
        found += [(group, self.outputs, len(Ftrl.slots)) for group in self._wide_groups]
        return tuple(
            TableVariable(self.groups.index(group), group.rows, width, count, self._exchange(group, width))
            for group, width, count in found
        )

    def _exchange(self, group: TableGroup, width: int) -> Exchange:
        """Return how the gradient of a variable is summed, as `plan_exchange` chooses it."""
        training = self.options.training
        if self.is_sharded(group):
            return "shards"
        if training.table_exchange != "auto":
            return training.table_exchange
        return cheaper_exchange(traffic_of(group.tables, training.global_batch_size), width, workers=self.workers)

    def is_sharded(self, group: TableGroup) -> bool:
        """Return whether each worker holds only a part of the rows of a group."""
        return self.shards and group.tables[0].rows >= self.smallest

    # Rows

    def distinct(self, group: int, rows: float) -> float:
        """Return the expected number of distinct rows of a group that so many rows of a batch look up."""
        return sum(expected_distinct(own.rows, rows * own.hotness) for own in self.groups[group].tables)

    def own_rows(self, group: int) -> float:
        """Return the number of distinct rows of a group that this worker looks up."""
        return self.distinct(group, self.batch)

    def updated_rows(self, table: TableVariable) -> float:
        """Return the number of rows of a variable that this worker updates: its own among all that are looked up."""
        everywhere = self.distinct(table.group, self.batch * self.workers)
        return everywhere / self.workers if table.exchange == "shards" else everywhere

    # Dense weights and products

    @cached_property
    def dense_weights(self) -> int:
        """Number of dense weights: kernels and biases of the deep part, slopes and biases of the wide part."""
        deep = sum((inputs + 1) * units for inputs, units in pairwise(self.widths))
        return deep + (len(self.layout.numerical) + 1) * self.outputs

    @property
    def parameters(self) -> int:
        """Number of all weights, dense ones and tables."""
        return self.dense_weights + sum(table.rows * table.width for table in self.tables)

    @property
    def flops(self) -> float:
        """FLOPs of matrix products: forward, and backward for inputs and for weights.

        The sums of biases are products with ones. Inputs of the wide part's slopes have no gradient.
        """
        names = {task.name: task.width for task in self.tasks}
        kernels = self.options.model.dense_weights(self.widths[0], names)
        biases, slopes = sum(self.widths[1:]), len(self.layout.numerical) * self.outputs
        return self.batch * (6 * kernels + 2 * biases + 4 * slopes)

    # Bytes sent

    @property
    def sent(self) -> dict[str, float]:
        """Bytes that the worker sends in a step by kind of collective, as benchmarks/exchange_bytes.py counts them."""
        n, wire = self.workers, self._wire
        whole = sum(table.rows * table.width for table in self.tables if table.exchange == "whole")
        sums = FLOAT * (2 * len(self.tasks) + 1 + CONTROL_FLAGS) + wire * (self.dense_weights + whole)
        gathered = sum(INT64 * self.own_rows(group) for group in self._groups_by("rows"))
        gathered += sum(FLOAT * own.width * self.own_rows(own.group) for own in self.tables if own.exchange == "rows")
        # Of a sharded group: how many rows each worker is asked for, and the numbers of these as int32.
        sharded = self._groups_by("shards")
        swapped = sum(FLOAT * (n + self.own_rows(group)) for group in sharded)
        swapped += sum(
            2 * FLOAT * own.width * self.own_rows(own.group) for own in self.tables if own.exchange == "shards"
        )
        sums += FLOAT * bool(sharded)  # whether gradients are finite everywhere
        return {"sum": 2 * (n - 1) / n * sums, "gather": (n - 1) * gathered, "exchange": (n - 1) / n * swapped}

    @property
    def collectives(self) -> int:
        """How many collectives the step waits for, one after the other."""
        if self.workers == 1:
            return 0
        # Row counts, losses and dense gradients; rows and their numbers; counts, numbers, rows, gradients and a check.
        return 3 + 2 * bool(self._groups_by("rows")) + 5 * bool(self._groups_by("shards"))

    def _groups_by(self, exchange: Exchange) -> list[int]:
        return sorted({table.group for table in self.tables if table.exchange == exchange})

    @property
    def _wire(self) -> int:
        """Bytes of a value of a dense gradient as it is sent."""
        return HALF if self.options.training.fp16_allreduce else FLOAT

    # Bytes of memory, and to the GPU

    @property
    def memory(self) -> dict[str, float]:
        """Bytes of memory read and written in a step, by what for."""
        tables = sum(
            self._whole_bytes(table) if table.exchange == "whole" else self._row_bytes(table) for table in self.tables
        )
        dense = self._gradient_passes + 1 + 2 * (1 + len(OPTIMIZERS[self.options.deep_optimizer.rule].slots))
        return {
            "layers": self._layer_bytes,
            "lookups": self._lookup_bytes,
            "dense update": FLOAT * dense * self.dense_weights,
            "tables": tables,
        }

    @property
    def _layer_bytes(self) -> float:
        of_hidden = HALF if self.is_half else FLOAT
        head = len(self.widths) - 2
        values = [
            (FLOAT if layer == head else of_hidden) * (3 * inputs + 9 * units)
            for layer, (inputs, units) in enumerate(pairwise(self.widths))
        ]
        # The input is concatenated and its gradient split, and both are cast.
        casts = 2 * (FLOAT + HALF) if self.is_half else 0
        masks = 2 * sum(self.widths[1:-1]) if self.options.model.deep_dropout else 0
        return self.batch * (sum(values) + (4 * FLOAT + casts) * self.widths[0] + masks)

    @property
    def _lookup_bytes(self) -> float:
        total = 0.0
        for table in self.tables:
            group = self.groups[table.group]
            total += FLOAT * table.width * self.batch * group.ids_per_row * (7 if group.has_lists else 5)
        return total

    @property
    def _gradient_passes(self) -> float:
        """Passes over a dense gradient between the products that make it and its update."""
        buffer = 4 * self._wire / FLOAT if self.workers > 1 else 0
        return 1 + (3 if self._wire == HALF else 0) + buffer + 1 + 2 * self.is_scaled

    def _whole_bytes(self, table: TableVariable) -> float:
        passes = self._gradient_passes + 2 + 2 * (1 + table.slots)
        return FLOAT * table.rows * table.width * passes

    def _row_bytes(self, table: TableVariable) -> float:
        own, updated, n = self.own_rows(table.group), self.updated_rows(table), self.workers
        passes = updated * (1 + 2 * self.is_scaled + 1 + 6 * (1 + table.slots)) + own  # the gradient is written
        if table.exchange == "shards":
            # Rows: gathered, joined and cut again. Gradients: joined, cut, and summed by row.
            passes += own * (2 + 2 + 2) + own * (2 + 2 + 1) + updated
        elif n > 1:
            passes += own + 2 * n * own + updated  # sent, received and read, and summed by row
        return FLOAT * table.width * passes

    @property
    def copied(self) -> float:
        """Bytes of the batch that the host copies to the GPU ahead of the step (see trainer/packing.py)."""
        total = self.batch * FLOAT * (len(self.layout.numerical) + len(self.tasks) + 1)
        for index, group in enumerate(self.groups):
            ids = self.batch * group.ids_per_row
            # `sources`, `row_slots` and `row_positions`, and for lists `slots` and `counts` (see `Lookups`).
            total += INT64 * (self.own_rows(index) + (4 if group.has_lists else 3) * ids)
            total += FLOAT * self.batch * len(group.pooled) * group.has_lists
        return total

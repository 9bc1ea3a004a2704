"""The bytes that the steps of a run take: activations, gradients, batches on their way, and the rows of evaluation.

Imports no TensorFlow.
"""

from collections.abc import Callable
from dataclasses import dataclass

from data.loading.loader import DECODE_THREADS, LoaderSize
from trainer.config import ModelOptions, Options
from trainer.embeddings import SMALLEST_SHARDED
from trainer.embeddings.costs import expected_distinct
from trainer.embeddings.groups import TableGroup, group_tables, group_vectors, group_wide
from trainer.layout import InputSchema, SequenceInput, Table
from trainer.model_size import rules_of
from trainer.process.device import has_units, own_flags
from trainer.tasks.loss_weighting import LOSS_WEIGHTINGS
from trainer.tasks.task import Task

_FLOAT, _INT64 = 4, 8

# Bytes per row of what metrics compute with, without and with groups, for one worker and for several (docs/metrics.md).
METRIC_BYTES = {(False, False): 60, (True, False): 90, (False, True): 140, (True, True): 150}


@dataclass(frozen=True)
class RunSize:
    """What the memory of a run depends on.

    Attributes:
        options: the resolved configuration.
        layout: layout of the model's input tensors.
        tasks: the tasks, one per label.
        training: what the loader of training holds as one of so many workers; None if the run does not train.
        evaluation: likewise for the evaluated mapping.
        with_group: whether metrics that rank rows within groups are computed.
        score_numbers: how many numerical features the score reads.
    """

    options: Options
    layout: InputSchema
    tasks: tuple[Task, ...]
    training: Callable[[int], LoaderSize] | None = None
    evaluation: Callable[[int], LoaderSize] | None = None
    with_group: bool = False
    score_numbers: int = 0

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return sum(task.width for task in self.tasks)

    @property
    def groups(self) -> tuple[TableGroup, ...]:
        """The groups of tables whose rows a step looks up."""
        deep = group_tables(self.layout, SMALLEST_SHARDED)
        wide = group_wide(self.layout, deep, SMALLEST_SHARDED) if self.options.model.has_wide_part else ()
        return (*deep, *group_vectors(self.layout), *(group for group in wide if group not in deep))


class StepMemory:
    """The bytes that steps and batches take on one worker.

    Args:
        run: the run.
        workers: number of workers, which divide the global batch.
        sharded: whether large tables are sharded over them.
        on_gpu: whether they compute on GPUs.

    Attributes:
        training: sizes of the loader of training; None if the run does not train.
        evaluated: likewise for the evaluated mapping.
    """

    def __init__(self, run: RunSize, workers: int, *, sharded: bool, on_gpu: bool):
        self.training = None if run.training is None else run.training(workers)
        self.evaluated = None if run.evaluation is None else run.evaluation(workers)
        self._run, self._workers, self._sharded = run, workers, sharded
        # Bytes of a row that each part of the network keeps, from the input up.
        self._kept = [values * size for values, size in kept_values(run, _unit_bytes(run.options, on_gpu=on_gpu))]

    def activations(self) -> int:
        """Return the bytes that the backward pass needs of the forward pass, or of a forward pass's widest layers."""
        model, layout = self._run.options.model, self._run.layout
        of_training = self.training.batch_rows * sum(self._kept) if self.training else 0
        forward = _FLOAT * model.input_width(layout) + sum(sorted(self._kept)[-2:])  # a layer's input and output
        of_evaluation = self.evaluated.batch_rows * forward if self.evaluated else 0
        return int(max(of_training, of_evaluation))

    def gradients(self) -> int:
        """Return the bytes that gradients of activations, embeddings and rows take at most besides the activations."""
        if self.training is None:
            return 0
        # The activations are freed by the time that gradients get to the tables, and their memory is used again.
        return int(max(self._in_pass(self.training), self._in_tables(self.training) - self.activations()))

    def dense_copies(self) -> int:
        """Return how many arrays of the size of the dense weights a step makes: gradients, new values and slots."""
        options = self._run.options
        if self.training is None:
            return 0
        copies = 2 + len(rules_of(options)[0].slots) + (self._workers > 1)
        # A gradient for each task, and what they are combined from.
        per_task = LOSS_WEIGHTINGS[options.training.loss_weighting].wants == "all"
        return copies + 2 * per_task * len(self._run.tasks)

    def _in_pass(self, size: LoaderSize) -> float:
        """Return the bytes of the gradients that exist at once: of a layer's output, and of its product or input."""
        options, layout = self._run.options.model, self._run.layout
        of_sequences = [_FLOAT * _gradient_values(options, layout, sequence) for sequence in layout.sequences]
        return size.batch_rows * max([2 * max(self._kept), *of_sequences])

    def _in_tables(self, size: LoaderSize) -> float:
        """Return the bytes that gradients of rows take while they are summed, exchanged, and used in an update."""
        layout, rows = self._run.layout, self._row_gradients(size)
        # Those of pooled embeddings, whole and cut into groups, and those of each id.
        pooled = _FLOAT * (2 * _pooled_values(layout) + sum(own.width * ids for own, ids in _ids(self._run, size)))
        in_sum = size.batch_rows * pooled + rows
        # Of the weight and of each slot, the old and the new value.
        in_update = rows * (1 + 2 * (1 + len(rules_of(self._run.options)[0].slots)))
        # Shards: the rows fetched, and what is sent and received, in one piece and in parts. Otherwise, the gradients
        # of all workers.
        in_exchange = rows * (1 + (4 if self._sharded else self._workers)) if self._workers > 1 else 0
        return max(in_sum, in_update, in_exchange)

    def _row_gradients(self, size: LoaderSize) -> float:
        """Return the bytes of the gradients of a batch's distinct rows, with the wide weights of their ids."""
        layout = self._run.layout
        outputs = self._run.outputs if self._run.options.model.has_wide_part else 0
        tables = (*layout.tables, *layout.wide_tables(outputs))
        return sum(_FLOAT * table.width * _distinct(layout, size, table) for table in tables)

    def packed_bytes(self, size: LoaderSize) -> int:
        """Return the bytes of a batch as a step takes it (see `Lookups` and `StepInput`)."""
        layout, total = self._run.layout, 0.0
        for group, ids in _ids(self._run, size):
            in_steps = sum(feature.hotness for feature in group.in_sequences)
            of_ids = 3 + group.has_lists if group.is_trained else 1 + group.has_lists
            per_row = _INT64 * (of_ids * ids + in_steps) + _FLOAT * (group.has_lists * len(group.pooled))
            total += size.batch_rows * (per_row + 2 * _FLOAT * group.has_weights * ids)
            distinct = sum(_distinct(layout, size, table) for table in group.tables)
            total += 2 * _INT64 * distinct  # also passed on to mark the rows of a checkpoint
        values = len(layout.numerical) + layout.vector_columns + len(self._run.tasks) + 1
        values += sum(sequence.length * (1 + len(sequence.numbers)) for sequence in layout.sequences)
        return int(total + size.batch_rows * _FLOAT * values)

    def loader(self) -> int:
        """Return the bytes of the loader of training, whose thread finds what a batch looks up."""
        size = self.training
        numbers = sum(_FLOAT * group.rows for group in self._run.groups)  # one for each row, see `LookupFinder`
        return numbers + (self._reading(size) if size else 0)

    def _reading(self, size: LoaderSize) -> int:
        """Return the bytes of reading for training; one batch is being built from several windows, found and packed."""
        building = 2 * size.batch_rows * size.row_bytes + self.packed_bytes(size)
        return size.window_bytes + DECODE_THREADS * size.decoded_bytes + building

    def ahead(self) -> int:
        """Return the bytes of the packed batches, which the loader makes ahead of training or of evaluation."""
        of_training = self.training.batches * self.packed_bytes(self.training) if self.training else 0
        of_evaluation = (self.evaluated.batches + 1) * self.packed_bytes(self.evaluated) if self.evaluated else 0
        return max(of_training, of_evaluation)

    def unpacked(self) -> int:
        """Return the bytes of a batch's tensors, and of the numbers by which workers find rows that several look up."""
        packed = max(self.packed_bytes(size) for size in (self.training, self.evaluated) if size)
        exchanged = self.training is not None and self._workers > 1
        return packed + exchanged * sum(_INT64 * group.rows for group in self._run.groups)

    def evaluation(self) -> int:
        """Return the bytes of the loader of evaluation, of its batches, and of what metrics need of every row.

        Evaluation uses the memory that the loader of training has returned; what it takes beyond that is counted.
        """
        size = self.evaluated
        if size is None:
            return 0
        run = self._run.options.run
        has_metrics = run.predict is None and run.importance is None
        floats = self._run.outputs + len(self._run.tasks) + 1 + self._run.score_numbers
        store = _FLOAT * floats + _INT64 * self._run.with_group
        of_metrics = METRIC_BYTES[self._run.with_group, self._workers > 1] if has_metrics else 0
        batches = (size.batches + 1) * size.batch_rows * size.row_bytes
        reading = size.window_bytes + DECODE_THREADS * size.decoded_bytes + batches
        # The loader is closed when metrics are computed.
        needed = size.rows * store + max(reading, size.rows * of_metrics)
        returned = self._reading(self.training) - self.training.kept_bytes if self.training else 0
        return max(0, needed - returned)


def kept_values(run: RunSize, unit_bytes: int) -> list[tuple[int, int]]:
    """Return what each part of the network keeps of a row for the backward pass, from the input up.

    Args:
        run: the run.
        unit_bytes: bytes that a hidden unit takes.

    Returns:
        The number of values of each part, and the bytes of each value.
    """
    options, layout = run.options.model, run.layout
    below = [value for sequence in layout.sequences for value in _sequence_values(options, layout, sequence)]
    if options.vector_norm == "layer":
        below.append(2 * sum(layout.vector_dimensions))
    below += [options.input_width(layout), *_interaction_values(options, layout)]
    hidden = options.kept_values({task.name: task.width for task in run.tasks})
    return [*((value, _FLOAT) for value in below), *((value, unit_bytes) for value in hidden)]


def _sequence_values(options: ModelOptions, layout: InputSchema, sequence: SequenceInput) -> list[int]:
    """Return what the encoder of a sequence keeps: the keys of all steps, and what weighs them."""
    keys = sum(layout.named(name).width for name in sequence.features) + len(sequence.numbers)
    if sequence.encoder == "din":
        first, *others = options.attention_hidden_units
        # The first layer is a matrix of each row's own (see `Din`).
        return [sequence.length * keys, keys * first, sequence.length * first, *(sequence.length * n for n in others)]
    if sequence.encoder == "self_attention":
        heads = options.attention_heads
        return [sequence.length * keys, 3 * heads * keys, 3 * heads * sequence.length, 8 * keys]
    return [sequence.length * keys]


def _gradient_values(options: ModelOptions, layout: InputSchema, sequence: SequenceInput) -> int:
    """Return the values of a row's gradients that exist at once in the encoder of a sequence.

    Those of the matrices of `Din` are multiplied by two others, for the target and for the kernel.
    """
    keys, *others = _sequence_values(options, layout, sequence)
    return keys + 3 * others[0] if sequence.encoder == "din" else 2 * keys


def _interaction_values(options: ModelOptions, layout: InputSchema) -> list[int]:
    width, features = options.input_width(layout), len(layout.deep)
    if options.interaction == "cross":
        return [2 * width + options.cross_rank] * options.cross_layers
    if options.interaction == "dot":
        vectors = features + layout.has_numbers
        return [2 * vectors * layout.widest, vectors**2, options.network_width(layout)]
    return [features * layout.widest] if options.interaction == "fm" else []


def _unit_bytes(options: Options, *, on_gpu: bool) -> int:
    """Return the bytes that are kept of a hidden unit: by its dtype, activation and normalization."""
    model, training, of_unit = options.model, options.training, _FLOAT
    if training.amp:
        dtype = "bfloat16" if training.amp_dtype == "auto" else training.amp_dtype
        # Without native units, products take operands that are rounded, but float32 (see `product_dtype`).
        of_unit = 2 if on_gpu or has_units(dtype, own_flags()) else 2 + _FLOAT
    kept = of_unit  # all that relu needs, with dropout, is its result
    if model.batch_norm or model.activation != "relu":
        kept += of_unit + 2 * (model.deep_dropout > 0)  # its input, and the mask of dropout as bytes and booleans
    if model.batch_norm:
        kept += 2 * _FLOAT  # the centered input and the output of the normalization
    return kept


def _pooled_values(layout: InputSchema) -> int:
    """Return the number of values that embeddings of a row have before the network: pooled ones, and those of steps."""
    of_steps = sum(feature.width * feature.hotness for feature in layout.deep if feature.sequence)
    return layout.embedding_width + of_steps


def _list_share(layout: InputSchema, size: LoaderSize) -> float:
    """Return how full lists are, from the row groups that have the most values: 1 if all are as long as they may be."""
    longest = sum(feature.hotness for feature in layout.categorical if feature.multihot)
    longest += layout.weight_columns + layout.number_columns
    return size.list_values / longest if longest else 1.0


def _distinct(layout: InputSchema, size: LoaderSize, table: Table) -> float:
    """Return how many distinct rows of a table a batch looks up, if its ids are uniform: at most, if they are not."""
    return expected_distinct(table.rows, size.batch_rows * max(1.0, _list_share(layout, size) * table.hotness))


def _ids(run: RunSize, size: LoaderSize) -> list[tuple[TableGroup, float]]:
    """Return the mean number of ids of a row that each group looks up."""
    share = _list_share(run.layout, size)
    return [
        (group, sum(share * own.hotness if own.multihot else 1.0 for own in group.features)) for group in run.groups
    ]

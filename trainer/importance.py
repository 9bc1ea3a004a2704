"""Permutation importance: how much a model's metrics change when one feature is permuted across the evaluated rows.

A feature that is permuted keeps its distribution, but says nothing about its row any more (Breiman, "Random Forests",
Machine Learning 45, 2001, section 10; Fisher, Rudin and Dominici, "All Models are Wrong, but Many are Useful", JMLR 20,
2019, section 3.2). Rows, permutations and batches depend on the seed and on the rows of the mapping alone, never on the
number of workers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np

from data.errors import DataError
from data.loading.batch import Batch, Ids
from data.loading.lists import Lists, empty_lists
from data.loading.loader import ParquetLoader
from trainer.comm import Comm, SingleWorker
from trainer.evaluate import Forward
from trainer.importance_file import Effect, FeatureEffects, TaskImportance
from trainer.layout import InputSchema, RowValues, training_only_of
from trainer.metrics.auc import RocAuc
from trainer.metrics.losses import LogLoss
from trainer.metrics.metric import Direction, Metric
from trainer.models.ranking import RankingModel
from trainer.seeds import seed_of
from trainer.tasks.evaluation import Evaluation, RowStore
from trainer.tasks.task import Task, restrict_to_sample_space

BATCH_ROWS = 8192  # rows of a batch of one worker
BLOCKS = 20  # random blocks of rows that standard errors are computed from


class Sample(NamedTuple):
    """Rows of the mapping in dataset order, on every worker. Rows of weight 0 are left out.

    Attributes:
        ids: ids of the rows.
        numerical: [rows, numerical] float32.
        vectors: [rows, vector columns] float32.
        labels: [rows, tasks] float32; NaN where missing.
        weights: [rows] float32.
    """

    ids: Ids
    numerical: np.ndarray
    vectors: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


class InputFeature(NamedTuple):
    """A feature of the model's input, or a sequence, whose features are permuted together.

    Attributes:
        name: name of the feature or the sequence.
        onehot, lists, number_lists, numerical: its columns in each field of Sample.ids, and in Sample.numerical.
        vectors: its columns in Sample.vectors.
    """

    name: str
    onehot: tuple[int, ...] = ()
    lists: tuple[int, ...] = ()
    number_lists: tuple[int, ...] = ()
    numerical: tuple[int, ...] = ()
    vectors: slice = slice(0)


def input_features(layout: InputSchema) -> list[InputFeature]:
    """Return the features of a layout: categorical ones by id columns, sequences, vectors, numerical ones."""
    of_numbers = {feature.name: column for column, feature in enumerate(layout.weighted)}
    of_numbers |= {name: column for column, name in enumerate(layout.sequence_numbers, start=len(of_numbers))}
    found = []
    for feature in layout.categorical:
        column = layout.columns[feature.name]
        if not feature.multihot:
            found.append(InputFeature(feature.name, onehot=(column,)))
        elif not feature.sequence:
            weights = (of_numbers[feature.name],) if feature.weights else ()
            found.append(InputFeature(feature.name, lists=(column,), number_lists=weights))
    for sequence in layout.sequences:
        columns = tuple(layout.columns[name] for name in sequence.features)
        numbers = tuple(of_numbers[name] for name in sequence.numbers)
        found.append(InputFeature(sequence.name, lists=columns, number_lists=numbers))
    found += [InputFeature(name, vectors=places) for name, places in layout.vector_places.items()]
    return found + [InputFeature(name, numerical=(column,)) for column, name in enumerate(layout.numerical)]


def choose_rows(rows: int, most: int, seed: int) -> np.ndarray:
    """Return the rows of the mapping to measure on: all, or `most` of them at random, ascending [rows] int64."""
    if rows <= most:
        return np.arange(rows)
    random = np.random.default_rng(seed_of(seed, "importance/rows"))
    return np.sort(random.choice(rows, most, replace=False, shuffle=False))


def permutation_of(feature: str, rows: int, seed: int) -> np.ndarray:
    """Return for each row of the sample the row whose values of the feature it gets, [rows] int64."""
    return np.random.default_rng(seed_of(seed, f"importance/feature/{feature}")).permutation(rows)


def blocks_of(rows: int, seed: int) -> np.ndarray:
    """Return the block of each row of the sample, [rows] int64: random blocks whose sizes differ by at most one."""
    return np.random.default_rng(seed_of(seed, "importance/blocks")).permutation(rows) % BLOCKS


def draw_sample(loader: ParquetLoader, chosen: np.ndarray, comm: Comm, on_batch: Callable[[], None]) -> Sample:
    """Read the mapping once and give all workers its chosen rows. A collective.

    Args:
        loader: loader of the mapping, unshuffled.
        chosen: rows of the mapping, [rows] int64 ascending.
        comm: collectives over the workers, each of which reads its share of the mapping.
        on_batch: called after each batch.

    Raises:
        DataError: all chosen rows have weight 0. Raised on all workers alike.
    """
    parts: list[Sample] = []
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            parts.append(_chosen_part(batch, chosen))
            on_batch()
    # One collective for all columns, as the bits of int32 values, and one each for ids in lists and their weights.
    packed = np.concatenate([_packed(part) for part in parts])
    widths = [array.shape[1] for array in _columns(parts[0])]
    onehot, lengths, weighted, *floats = (
        np.ascontiguousarray(columns) for columns in np.split(comm.gather_rows(packed), np.cumsum(widths)[:-1], axis=1)
    )
    if len(onehot) == 0:
        raise DataError("--importance: none of the evaluated rows has a sample weight above 0; evaluate other rows")
    listed = np.concatenate([part.ids.id_lists.values for part in parts])
    lists = Lists(comm.gather_rows(listed), lengths)
    number_lists = empty_lists(len(onehot), 0, np.float32)
    if weighted.shape[1]:
        of_ids = np.concatenate([part.ids.number_lists.values for part in parts])
        number_lists = Lists(comm.gather_rows(of_ids), weighted)
    numerical, vectors, labels, weights = (columns.view(np.float32) for columns in floats)
    return Sample(Ids(onehot, lists, number_lists), numerical, vectors, labels, weights[:, 0])


def _chosen_part(batch: Batch, chosen: np.ndarray) -> Sample:
    """Return the chosen rows of an unshuffled batch, whose rows follow one another."""
    first, rows = int(batch.rows[0]), int((batch.rows >= 0).sum())  # padding is at the end
    low, high = np.searchsorted(chosen, [first, first + rows]) if rows else (0, 0)
    picked = chosen[low:high] - first
    picked = picked[batch.weights[picked] != 0]
    columns = (batch.numerical, batch.vectors, batch.labels, batch.weights)
    return Sample(batch.ids.take(picked), *(column[picked] for column in columns))


def _columns(sample: Sample) -> list[np.ndarray]:
    """Return the columns of a sample with the lengths of its lists, [rows, width] int32 or float32 each."""
    onehot, lists, number_lists = sample.ids
    floats = [sample.numerical, sample.vectors, sample.labels, sample.weights[:, np.newaxis]]
    return [onehot, lists.lengths, number_lists.lengths, *floats]


def _packed(sample: Sample) -> np.ndarray:
    """Return the bits of all columns side by side, [rows, width] int32."""
    return np.concatenate([np.ascontiguousarray(column).view(np.int32) for column in _columns(sample)], axis=1)


class SampleModel:
    """Computes the logits of a sample, intact or with a feature permuted.

    Every worker holds the sample and computes some of its batches, equally many on each worker, because the lookups in
    sharded tables are collectives. The batches are the same for any number of workers.

    Args:
        model: any ranking model, with its current weights.
        sample: the rows.
        comm: collectives over the workers.
        xla: whether to compile the forward pass with XLA (on a GPU only).
        on_batch: called after each batch of this worker.
    """

    def __init__(
        self, model: RankingModel, sample: Sample, comm: Comm, *, xla: bool, on_batch: Callable[[], None]
    ) -> None:
        self._model, self._sample, self._comm, self._on_batch = model, sample, comm, on_batch
        self._batch_rows = min(BATCH_ROWS, len(sample.weights))
        self._forward = Forward(model, self._batch_rows, xla=xla)

    def logits(self, feature: InputFeature | None = None, order: np.ndarray | None = None) -> np.ndarray:
        """Return the logits of all rows, [rows, outputs] float32, on every worker. A collective.

        Args:
            feature: feature to permute; None for the intact rows.
            order: for each row, the row whose values of the feature it gets, [rows] int64.

        Raises:
            FloatingPointError: a logit is NaN or infinite. Raised on all workers alike.
        """
        parts = []
        for own, rows in self._batches():
            inputs = self._inputs(own, feature, order)
            parts.append(self._forward.run(self._forward.packing.pack(inputs)).numpy()[:rows])
            self._on_batch()
        logits = self._comm.gather_rows(np.concatenate(parts))
        if not np.isfinite(logits).all():
            where = "of the intact rows" if feature is None else f"with {feature.name!r} permuted"
            raise FloatingPointError(
                f"--importance: logits {where} are NaN or infinite. Measure an earlier checkpoint, or use bfloat16 or "
                "float32 instead of float16."
            )
        return logits

    def _batches(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield the rows of this worker's batches, [batch] int64, and how many of them are not padding."""
        total, size = len(self._sample.weights), self._batch_rows
        per_worker = batches_per_pass(total, self._comm.size)
        for number in range(self._comm.rank * per_worker, (self._comm.rank + 1) * per_worker):
            start = number * size
            # Padding repeats the last row.
            yield np.minimum(np.arange(start, start + size), total - 1), min(max(total - start, 0), size)

    def _inputs(self, own: np.ndarray, feature: InputFeature | None, order: np.ndarray | None) -> tuple:
        """Return what the forward pass takes for the given rows, [batch] int64."""
        sample, (_, lists, number_lists) = self._sample, self._sample.ids
        onehot, numerical, vectors = sample.ids.onehot[own], sample.numerical[own], sample.vectors[own]
        rows_of_lists, rows_of_numbers = (
            np.repeat(own[:, np.newaxis], one.lengths.shape[1], axis=1) for one in (lists, number_lists)
        )
        if feature is not None and order is not None:
            permuted = order[own]
            onehot[:, feature.onehot] = sample.ids.onehot[permuted][:, feature.onehot]
            rows_of_lists[:, feature.lists] = permuted[:, np.newaxis]
            rows_of_numbers[:, feature.number_lists] = permuted[:, np.newaxis]
            numerical[:, feature.numerical] = sample.numerical[permuted][:, feature.numerical]
            vectors[:, feature.vectors] = sample.vectors[permuted, feature.vectors]
        ids = Ids(onehot, lists.take(rows_of_lists), number_lists.take(rows_of_numbers))
        layout = self._model.layout
        served = training_only_of(np.tile(np.array(layout.training_only.serve, np.float32), (len(own), 1)))
        return self._model.embeddings.lookups(ids), RowValues(numerical, layout.steps(ids), vectors, served)


def batches_per_pass(rows: int, workers: int) -> int:
    """Return how many batches each worker computes for the logits of a sample of so many rows."""
    batches = -(-rows // min(BATCH_ROWS, rows))
    return -(-batches // workers)


def measured_metrics(task: Task) -> list[type[Metric]]:
    """Return the metrics that are reported for a task: its ranking metric, then its loss.

    The ranking metric is the ROC AUC or, for a task without it, the one that stands out most in an evaluation.
    """
    known = [metric for metric in task.metrics if not metric.needs_group]
    ranking = max(known, key=lambda metric: (metric.name == RocAuc.name, metric.name != LogLoss.name, metric.headline))
    return [ranking, *(metric for metric in known if metric.name == LogLoss.name and metric is not ranking)]


def measure_importance(
    logits_of: SampleModel, sample: Sample, tasks: Sequence[Task], layout: InputSchema, seed: int
) -> tuple[list[TaskImportance], list[str]]:
    """Permute one feature after the other and measure all tasks. A collective.

    The standard error of a change is that of the mean over independent blocks (Wolter, "Introduction to Variance
    Estimation", 2007, chapter 2, random groups): with the change d_b within each of B random blocks of rows,
    sqrt(sum of (d_b - mean d)^2 / (B - 1) / B). It covers the draw of the rows as well as that of the permutation.

    Returns:
        The effects of all features on each task, and warnings about undefined metrics.

    Raises:
        DataError, FloatingPointError: labels, weights or logits cannot be measured. Raised on all workers alike.
    """
    intact_logits = logits_of.logits()
    evaluation = Evaluation(tasks, with_group=False)
    evaluation.update(intact_logits, sample.labels, sample.weights)
    evaluation.result(SingleWorker())  # checks labels and weights
    blocks = blocks_of(len(sample.weights), seed)
    intact = block_metrics(intact_logits, sample, tasks, blocks)
    changes: dict[str, list[dict[str, np.ndarray]]] = {}
    for feature in input_features(layout):
        permuted = logits_of.logits(feature, permutation_of(feature.name, len(blocks), seed))
        found = block_metrics(permuted, sample, tasks, blocks)
        changes[feature.name] = [
            {name: new[name] - old[name] for name in old} for new, old in zip(found, intact, strict=True)
        ]
    importance = [
        _task_importance(task, intact[index], {name: of_task[index] for name, of_task in changes.items()})
        for index, task in enumerate(tasks)
    ]
    return importance, evaluation.undefined


def block_metrics(
    logits: np.ndarray, sample: Sample, tasks: Sequence[Task], blocks: np.ndarray
) -> list[dict[str, np.ndarray]]:
    """Compute the measured metrics of each task over all rows, and over the rows of each block.

    Args:
        logits: [rows, outputs] float32.
        sample: the rows.
        tasks: the tasks.
        blocks: block of each row, [rows] int64.

    Returns:
        For each task, by metric [1 + BLOCKS] float64: over all rows, then by block; NaN where undefined.
    """
    store, comm = RowStore(tasks, with_group=False), SingleWorker()
    store.append(logits, restrict_to_sample_space(sample.labels, tasks), sample.weights, None)
    found = []
    for index, task in enumerate(tasks):
        rows = store.task(index)
        rows = rows._replace(logits=task.output_logits(rows.logits))
        known = ~np.isnan(rows.labels)
        parts = [rows.select(known), *(rows.select(known & (blocks == block)) for block in range(BLOCKS))]
        metrics = {metric.name: task.create_metric(metric, 0) for metric in measured_metrics(task)}
        found.append(
            {name: np.array([metric.result(part, comm) for part in parts]) for name, metric in metrics.items()}
        )
    return found


def _task_importance(
    task: Task, intact: dict[str, np.ndarray], changes: dict[str, dict[str, np.ndarray]]
) -> TaskImportance:
    """Return the sorted effects on a task from its metrics and their changes by feature, [1 + BLOCKS] each."""
    ranking = measured_metrics(task)[0]
    sign = 1 if ranking.direction is Direction.LARGER else -1

    def rank(effects: FeatureEffects) -> float:
        change = effects.effects[ranking.name].change
        return math.inf if change is None else sign * change

    features = [
        FeatureEffects(name, {metric: _effect(values) for metric, values in of_feature.items()})
        for name, of_feature in changes.items()
    ]
    values = {name: _or_none(float(column[0])) for name, column in intact.items()}
    return TaskImportance(task.name, values, sorted(features, key=rank))


def _effect(changes: np.ndarray) -> Effect:
    """Return the effect from the change over all rows and in each block, [1 + BLOCKS]."""
    known = changes[1:][np.isfinite(changes[1:])]
    error = float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else math.nan
    return Effect(_or_none(float(changes[0])), _or_none(error))


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None

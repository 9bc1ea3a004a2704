"""Small models, steps and batches for tests of the trainer."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data.loading.batch import Ids
from data.loading.lists import Lists, empty_lists, from_padded
from trainer.comm import Comm, SingleWorker
from trainer.config import TrainingOptions
from trainer.embeddings.placement import HostTables
from trainer.embeddings.shards import Shards
from trainer.layout import CategoricalInput, InputSchema, ModelInputs, RowValues, SequenceInput, VectorInput
from trainer.models import build_model, model_options
from trainer.models.ranking import RankingModel
from trainer.models.weights import named
from trainer.optimizers.loss_scale import LossScale
from trainer.optimizers.optimizer import Optimizer, ParameterGroup
from trainer.optimizers.rules import Ftrl, RMSprop
from trainer.optimizers.schedules import Constant
from trainer.process.device import compiles_passes
from trainer.step import StepInput, StepResult, TrainStep
from trainer.tasks.binary import BinaryTask
from trainer.tasks.loss_weighting import LOSS_WEIGHTINGS
from trainer.tasks.task import Task

DEEP_RATE, WIDE_RATE = 0.01, 0.02

# user and tags are large beside a batch (their rows are collected), day is small (summed whole). user and friends share
# a table.
LAYOUT = InputSchema(
    categorical=(
        CategoricalInput("user", 0, 1, False, 500, 8),
        CategoricalInput("day", 1, 1, False, 7, 4),
        CategoricalInput("tags", 2, 3, True, 90, 6),
        CategoricalInput("friends", 5, 2, True, 500, 8, "user"),
    ),
    numerical=("age", "price"),
)

# Behavior sequences: clicks has a partner without a target (kind) and numbers; views shares the item's table, too.
HISTORY = InputSchema(
    categorical=(
        CategoricalInput("user", 0, 1, False, 500, 8),
        CategoricalInput("item", 1, 1, False, 90, 6),
        CategoricalInput("shop", 2, 1, False, 60, 6),
        CategoricalInput("tags", 3, 2, True, 90, 6, "item"),
        CategoricalInput("clicked_kind", 5, 5, True, 11, 3, sequence="clicks"),
        CategoricalInput("clicked_item", 10, 5, True, 90, 6, "item", sequence="clicks"),
        CategoricalInput("clicked_shop", 15, 5, True, 60, 6, "shop", wide="no", sequence="clicks"),
        CategoricalInput("viewed_item", 20, 4, True, 90, 6, "item", sequence="views"),
    ),
    numerical=("price",),
    sequences=(
        SequenceInput(
            "clicks",
            5,
            "din",
            ("clicked_kind", "clicked_item", "clicked_shop"),
            ("age", "dwell"),
            ("", "item", "shop"),
        ),
        SequenceInput("views", 4, "mean", ("viewed_item",), targets=("item",), newest_first=True),
    ),
)

# The same as LAYOUT, where the ids of friends have weights.
WEIGHTED = replace(
    LAYOUT, categorical=(*LAYOUT.categorical[:-1], replace(LAYOUT.categorical[-1], weights="friendship"))
)


# The same as LAYOUT, with two vectors; one of a single number is not normalized.
VECTORS = replace(LAYOUT, vectors=(VectorInput("title", 7), VectorInput("price_rank", 1)))


def make_model(
    *,
    layout: InputSchema = LAYOUT,
    tasks: tuple[str | Task, ...] = ("click",),
    dropout: float = 0.0,
    combiner: str = "sum",
    compute_dtype: str = "float32",
    seed: int = 1,
    shards: Shards | None = None,
    host: HostTables | None = None,
    **flags: object,
) -> RankingModel:
    small = {
        "deep_hidden_units": (32, 16),
        "expert_hidden_units": (16, 8),
        "tower_hidden_units": (8,),
        "num_experts": 4,
    }
    options = model_options(deep_dropout=dropout, combiner=combiner, **(small | flags))
    named_tasks = tuple(task if isinstance(task, Task) else BinaryTask(task) for task in tasks)
    return build_model(options, layout, named_tasks, compute_dtype=compute_dtype, seed=seed, shards=shards, host=host)


def make_step(
    model: RankingModel,
    *,
    comm: Comm | None = None,
    compute_dtype: str = "float32",
    loss_weighting: str = "static",
    batch_rows: int | None = None,
    **flags: object,
) -> TrainStep:
    """A step with RMSprop and FTRL; the flags are those of TrainingOptions."""
    embeddings = model.embeddings
    weighting = LOSS_WEIGHTINGS[loss_weighting](model.tasks, 3)
    optimizer = Optimizer(
        ParameterGroup(
            RMSprop(),
            Constant(DEEP_RATE),
            named(model.deep_weights) | weighting.weights,
            named(embeddings.deep_variables),
        ),
        ParameterGroup(Ftrl(), Constant(WIDE_RATE), named(model.wide_weights), named(embeddings.wide_variables)),
        compiled=compiles_passes(bool(flags.get("xla"))),
        cached=embeddings.cache_places,
    )
    loss_scale = LossScale(dynamic=compute_dtype == "float16")
    options = TrainingOptions(**{"global_batch_size": 16, **flags})  # type: ignore[arg-type]
    return TrainStep(model, optimizer, weighting, loss_scale, options, comm or SingleWorker(), batch_rows)


def unpadded(
    layout: InputSchema, ids: np.ndarray, weights: np.ndarray | None = None, numbers: np.ndarray | None = None
) -> Ids:
    """The ids in a matrix [rows, id columns], in which lists are padded with ids below 0, and their weights.

    With sequences that have numbers, these too, [rows, number columns].
    """
    lists = [feature for feature in layout.categorical if feature.multihot]
    columns = [column for feature in lists for column in range(feature.start, feature.stop)]
    onehot = [feature.start for feature in layout.categorical if not feature.multihot]
    number_lists = empty_lists(len(ids), 0, np.float32)
    step_ids = {sequence.name: layout.named(sequence.features[0]) for sequence in layout.sequences}
    with_numbers = [*layout.weighted, *(step_ids[own.name] for own in layout.sequences for _ in own.numbers)]
    if weights is not None and with_numbers:
        present = [ids[:, feature.start : feature.stop] >= 0 for feature in with_numbers]
        lengths = np.stack([own.sum(axis=1, dtype=np.int32) for own in present], axis=1)
        values = weights if numbers is None else np.concatenate([weights, numbers], axis=1)
        number_lists = Lists(values[np.concatenate(present, axis=1)], lengths)
    return Ids(ids[:, onehot], from_padded(ids[:, columns], [feature.hotness for feature in lists]), number_lists)


def weights_of(layout: InputSchema, ids: np.ndarray) -> np.ndarray:
    """Weights [rows, weight columns] float32 between 0 and 2 that depend on the ids."""
    columns = [ids[:, feature.start : feature.stop] for feature in layout.weighted]
    return np.concatenate([ids[:, :0], *columns], axis=1).astype(np.float32) * 37 % 17 / 8


def numbers_of(layout: InputSchema, ids: np.ndarray) -> np.ndarray:
    """Numbers of steps [rows, number columns] float32 between -1 and 1 that depend on the ids."""
    columns = [ids[:, :0].astype(np.float32)]
    for sequence in layout.sequences:
        feature = layout.named(sequence.features[0])
        own = ids[:, feature.start : feature.stop]
        columns += [(own * (31 + number) % 17 / 8 - 1).astype(np.float32) for number in range(len(sequence.numbers))]
    return np.concatenate(columns, axis=1)


def vectors_of(layout: InputSchema, ids: np.ndarray) -> np.ndarray:
    """Vectors side by side [rows, vector columns] float32, between -3 and 3, that depend on the first two ids."""
    angles = ids[:, :1] * np.arange(1, layout.vector_columns + 1) + ids[:, 1:2]
    return np.sin(angles[:, : layout.vector_columns]).astype(np.float32) * 3


class Rows(NamedTuple):
    """The rows of a batch: ids [batch, id columns] int32, with lists padded, and the rest of a StepInput."""

    ids: tf.Tensor
    numerical: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor

    def input(self, model: RankingModel) -> StepInput:
        """The input of the model's training step."""
        ids, layout = self.ids.numpy(), model.layout
        own = unpadded(layout, ids, weights_of(layout, ids), numbers_of(layout, ids))
        lookups, sequences = tf.nest.map_structure(tf.constant, (model.embeddings.lookups(own), layout.steps(own)))
        values = RowValues(self.numerical, sequences, tf.constant(vectors_of(layout, ids)))
        return StepInput(lookups, values, self.labels, self.weights)

    def padded(self, layout: InputSchema) -> ModelInputs:
        """The matrices that a model is called with."""
        ids = self.ids.numpy()
        weights, numbers = tf.constant(weights_of(layout, ids)), tf.constant(numbers_of(layout, ids))
        return ModelInputs(self.ids, self.numerical, weights, numbers, tf.constant(vectors_of(layout, ids)))


def run(step: TrainStep, batch: Rows, number: int) -> np.ndarray:
    """Runs a step; returns the losses."""
    return step(step.packing.pack(batch.input(step.model)), tf.constant(number)).numpy()


def losses_of(model: RankingModel, batches: list[Rows], **options: object) -> list[float]:
    """Trains a model of one task on batches, one step each; returns the losses."""
    step = make_step(model, **options)
    return [run(step, batch, number).item() for number, batch in enumerate(batches, start=1)]


def run_eagerly(step: TrainStep, batch: Rows, number: int, flags: tuple[float, ...] = (0.0,)) -> StepResult:
    """Runs a step outside of a graph, where workers in threads can meet."""
    packed = step.packing.pack(batch.input(step.model))
    return step.run.python_function(packed, tf.constant(number), tf.constant(flags))


def make_batches(count: int, rows: int = 16, *, tasks: int = 1, seed: int = 0) -> list[Rows]:
    """Skewed ids with repeats, multi-hot rows with and without pads, labels that the inputs decide."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(count):
        user, day = rng.zipf(1.3, rows) % 500, rng.integers(0, 7, rows)
        tags = np.where(rng.random((rows, 3)) < 0.3, -1, rng.integers(0, 90, (rows, 3)))
        friends = np.where(rng.random((rows, 2)) < 0.3, -1, rng.zipf(1.3, (rows, 2)) % 500)
        numerical = rng.normal(size=(rows, 2))
        labels = np.stack([(numerical[:, 0] + task + (day < 3) > 1) for task in range(tasks)], axis=1)
        batches.append(
            Rows(
                ids=tf.constant(np.column_stack([user, day, tags, friends]), tf.int32),
                numerical=tf.constant(numerical, tf.float32),
                labels=tf.constant(labels, tf.float32),
                weights=tf.ones(rows),
            )
        )
    return batches


def part(batch: Rows, rows: slice) -> Rows:
    """Some rows of a batch."""
    return Rows(*(tensor[rows] for tensor in batch))


def share_of(batch: Rows, rank: int, workers: int) -> Rows:
    """A worker's rows of a batch of any size, padded to as many as any worker has, as the loader does it."""
    count = batch.weights.shape[0]
    rows = part(batch, slice(rank * count // workers, (rank + 1) * count // workers))
    pads = -(-count // workers) - rows.weights.shape[0]
    return Rows(*(tf.pad(tensor, [[0, pads], *[[0, 0]] * (len(tensor.shape) - 1)]) for tensor in rows))


def differences(first: RankingModel, second: RankingModel) -> float:
    """The largest absolute difference between two models' weights."""
    pairs = zip(first.variables, second.variables, strict=True)
    return max(float(np.abs(a.numpy() - b.numpy()).max(initial=0)) for a, b in pairs)

"""Evaluation: one pass over a mapping that computes logits, metrics and predictions, and the metrics as text."""

import math
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import islice

import numpy as np
import tensorflow as tf

from data.loading.batch import Batch
from data.loading.loader import ParquetLoader
from trainer.comm import Comm
from trainer.metrics.metric import Direction
from trainer.models.ranking import RankingModel
from trainer.packing import Packed, Packing
from trainer.predictions import PredictionWriter
from trainer.process.device import compiles_passes
from trainer.tasks.evaluation import MEAN, Evaluation, metric_of

MAX_TASKS_SHOWN, ENDS_SHOWN = 8, 3
MAX_REASONS_SHOWN = 5


class Forward:
    """The forward pass of a model, as a graph that uses its current weights.

    Args:
        model: any ranking model.
        rows: number of rows of a batch.
        xla: whether to compile it with XLA (on a GPU only).

    Attributes:
        packing: packs what the ids of a batch look up and its `RowValues`, ahead of the pass.
        run: the graph, a function of a packed batch that returns the logits, [batch, outputs] float32. A collective if
            tables are sharded.
    """

    def __init__(self, model: RankingModel, rows: int, *, xla: bool):
        self._model = model
        self.packing = Packing((model.embeddings.lookup_specs(rows), model.value_specs(rows)))
        # The embeddings are computed outside of what XLA may compile: it supports no collectives.
        logits = tf.function(model.logits, autograph=False, jit_compile=compiles_passes(xla))

        def run(packed: Packed) -> tf.Tensor:
            lookups, values = self.packing.unpack(packed)
            return logits(model.embed(lookups), values)

        self.run = tf.function(run, input_signature=(self.packing.signature,), autograph=False)

    def predicted(self, loader: ParquetLoader, steps: int | None = None) -> Generator[tuple[Batch, np.ndarray]]:
        """Yield batches of this worker with their logits, [batch, outputs] float32. A collective if tables are sharded.

        The device already computes the next batch while the caller processes the current one.

        Args:
            loader: loader of batches of `rows` rows.
            steps: number of batches; None for all.
        """
        with closing(loader.epoch(0, prepare=self._prepare)) as batches:
            waiting: tuple[Batch, tf.Tensor] | None = None
            for batch, packed in islice(batches, steps):
                started = (batch, self.run(packed))
                if waiting is not None:
                    yield waiting[0], waiting[1].numpy()  # waits for the previous batch only
                waiting = started
            if waiting is not None:
                yield waiting[0], waiting[1].numpy()

    def _prepare(self, batch: Batch) -> tuple[Batch, Packed]:
        """Pack a batch, in the loader's thread."""
        inputs = self._model.embeddings.lookups(batch.ids), self._model.layout.row_values(batch)
        return batch, self.packing.pack(inputs)


class Evaluator:
    """Evaluates a model with its current weights.

    Args:
        model: any ranking model.
        loader: loader of the evaluated mapping, unshuffled.
        evaluation: the metrics, which are reset before and after each pass.
        comm: collectives over the workers, each of which evaluates its share of the rows.
        xla: whether to compile the forward pass with XLA (on a GPU only).
    """

    def __init__(
        self,
        model: RankingModel,
        loader: ParquetLoader,
        evaluation: Evaluation,
        comm: Comm,
        *,
        xla: bool,
    ):
        self.loader, self.comm, self.evaluation = loader, comm, evaluation
        self._forward = Forward(model, loader.local_batch_size, xla=xla)

    def run(
        self,
        on_batch: Callable[[int], None] | None = None,
        predictions: PredictionWriter | None = None,
        observe: Callable[[Batch], None] | None = None,
    ) -> dict[str, float]:
        """Evaluate all rows of the mapping. A collective.

        Args:
            on_batch: called with the number of batches done after each batch.
            predictions: writer that receives every row's prediction.
            observe: called with each batch.

        Returns:
            The metrics over the rows of all workers, the same on every worker.
        """
        self.collect(on_batch, predictions, observe)
        metrics = self.evaluation.result(self.comm)
        self.evaluation.reset()
        return metrics

    def collect(
        self,
        on_batch: Callable[[int], None] | None = None,
        predictions: PredictionWriter | None = None,
        observe: Callable[[Batch], None] | None = None,
    ) -> None:
        """Add all rows of the mapping to an empty evaluation, without computing metrics. Arguments as for `run`."""
        self.evaluation.reset()
        for number, (batch, logits) in enumerate(self.predicted(), start=1):
            self.count(batch, logits)
            if predictions is not None:
                _add_predictions(batch, logits, predictions)
            if observe is not None:
                observe(batch)
            if on_batch is not None:
                on_batch(number)

    def predict(self, predictions: PredictionWriter, on_batch: Callable[[int], None]) -> None:
        """Pass every row's prediction to a writer without computing metrics.

        Args:
            predictions: writer that receives the predictions.
            on_batch: called with the number of batches done after each batch.
        """
        for number, (batch, logits) in enumerate(self.predicted(), start=1):
            _add_predictions(batch, logits, predictions)
            on_batch(number)

    def count(self, batch: Batch, logits: np.ndarray) -> None:
        """Add a batch and its logits to the metrics."""
        self.evaluation.update(logits, batch.labels, batch.weights, batch.group, batch.extra, batch.numerical)

    def predicted(self) -> Generator[tuple[Batch, np.ndarray]]:
        """Yield every batch of this worker with its logits, [batch, outputs] float32."""
        return self._forward.predicted(self.loader)


def _add_predictions(batch: Batch, logits: np.ndarray, predictions: PredictionWriter) -> None:
    here = batch.rows >= 0  # not padding
    predictions.add(batch.rows[here], batch.labels[here], logits[here], batch.numerical[here])


def describe(metrics: dict[str, float]) -> str:
    """Format the headline metrics as one readable line; the log has all of them.

    For a metric of more than MAX_TASKS_SHOWN tasks, the line shows its mean and the best and worst tasks.
    """
    parts = []
    for name in dict.fromkeys(key.split("/")[0] for key in metrics):
        if metric_of(name).headline:
            values = {key: value for key, value in metrics.items() if key.split("/")[0] == name}
            means = {key: value for key, value in values.items() if key == f"{name}/{MEAN}"}
            tasks = {key: value for key, value in values.items() if key not in means}
            shown = values if len(tasks) <= MAX_TASKS_SHOWN else means
            parts += [f"{key} {value:.5f}" for key, value in shown.items()]
            if shown is means:
                parts.append(_best_and_worst(name, tasks))
    return "  ".join(parts)


def _best_and_worst(name: str, tasks: dict[str, float]) -> str:
    known = {key.partition("/")[2]: value for key, value in tasks.items() if not math.isnan(value)}
    if not known:
        return "(no task known)"
    ranked = sorted(known, key=lambda task: known[task], reverse=metric_of(name).direction is Direction.LARGER)
    best, worst = (
        ", ".join(f"{task} {known[task]:.5f}" for task in chosen)
        for chosen in (ranked[:ENDS_SHOWN], ranked[::-1][:ENDS_SHOWN])
    )
    return f"({len(known)} of {len(tasks)} tasks known; best {best}; worst {worst})"


def undefined_warnings(reasons: list[str]) -> list[str]:
    """Return the first reasons why metrics are undefined, and how many more there are."""
    rest = len(reasons) - MAX_REASONS_SHOWN
    return [*reasons[:MAX_REASONS_SHOWN], *([f"... and {rest} more labels"] if rest > 0 else [])]

"""Conversion of a model's tables to the type of an export, and what it changes: predictions, and metrics of labels."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from data.loading.loader import ParquetLoader
from trainer.checkpoint.load_model import LoadedModel
from trainer.comm import SingleWorker
from trainer.export.comparison import ExportDiffers, difference, expected_predictions
from trainer.export.request import ROWS, ExportDtype, Request
from trainer.export.rows import random_rows
from trainer.export.table_dtype import store_tables, tables_of
from trainer.metrics.auc import RocAuc
from trainer.metrics.losses import LOSS
from trainer.tasks.evaluation import Evaluation
from trainer.tasks.task import Task

# The metrics whose change is measured.
MEASURED = (RocAuc.name, LOSS)


class Predicted(NamedTuple):
    """What a model predicts of the rows that a change is measured on.

    Attributes:
        logits: [rows, outputs] float32.
        metrics: those of MEASURED that are defined, by key (see `Evaluation.result`); none for random rows.
    """

    logits: np.ndarray
    metrics: dict[str, float]


def converted(saved: LoadedModel, request: Request) -> dict[str, Any]:
    """Convert the tables of a model to the type of an export, and measure and print the change.

    The change is measured on all rows of the mapping `test`; without a dataset, on random rows.

    Returns:
        Entries of the export's report (see docs/export.md).

    Raises:
        ExportDiffers: if a prediction changes by more than `request.max_change`.
    """
    before, size = _predict(saved, request.rows), _table_bytes(saved)
    store_tables(saved.model, request.dtype)
    after, stored = _predict(saved, request.rows), _table_bytes(saved)
    report = {
        "table_bytes": {"before": size, "after": stored},
        "rows": len(before.logits),
        "kind_of_rows": "random rows" if request.rows is None else "rows of the dataset",
        "largest_change": _changes(saved.tasks, before.logits, after.logits),
        "max_change": request.max_change,
        "metrics": {key: {"before": old, "after": after.metrics[key]} for key, old in before.metrics.items()},
    }
    _show(report, request.dtype)
    _check(report, request.dtype)
    return report


def _changes(tasks: Sequence[Task], before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Return the largest change of a prediction of each task, from logits [rows, outputs]."""
    old, new = (expected_predictions(tasks, logits) for logits in (before, after))
    return {task.name: difference(new[task.name], old[task.name]) for task in tasks}


def _show(report: Mapping[str, Any], dtype: ExportDtype) -> None:
    size, stored = report["table_bytes"].values()
    print(f"export.py: {dtype} tables: {stored:,} bytes instead of {size:,}")
    for name, change in report["largest_change"].items():
        on = f"{report['rows']:,} {report['kind_of_rows']}"
        print(f"export.py: {dtype} tables: largest change of a prediction of {name} {change:.2g} on {on}")
    for key, values in report["metrics"].items():
        old, new = values.values()
        print(f"export.py: {dtype} tables: {key} {old:.6f} becomes {new:.6f}, a change of {new - old:+.2g}")


def _check(report: Mapping[str, Any], dtype: ExportDtype) -> None:
    """Raise an ExportDiffers if a prediction changes too much."""
    changes, limit = report["largest_change"], report["max_change"]
    name = max(changes, key=lambda name: math.inf if math.isnan(changes[name]) else changes[name])
    if not changes[name] <= limit:  # also true for NaN
        others = "float16 or float32" if dtype == "int8" else "float32"
        raise ExportDiffers(
            f"--export_dtype {dtype} changes a prediction of {name!r} by {changes[name]:.2g}, over --max_change "
            f"{limit:g}; nothing was written. Use --export_dtype {others}, or allow it with a larger --max_change"
        )


def _table_bytes(saved: LoadedModel) -> int:
    """Return the size of all tables as they are stored."""
    arrays = [array for table in tables_of(saved.model).values() for array in table.arrays]
    return sum(math.prod(array.shape) * array.dtype.size for array in arrays)


def _predict(saved: LoadedModel, loader: ParquetLoader | None) -> Predicted:
    """Predict the rows of a loader, or random rows without one."""
    if loader is None:
        return Predicted(saved.model(*random_rows(saved.layout, ROWS)).numpy(), {})
    evaluation, logits = Evaluation(saved.tasks, with_group=False), []
    for of_batch, labels, weights in _batches(saved, loader):
        evaluation.update(of_batch, labels, weights)
        logits.append(of_batch)
    metrics = evaluation.result(SingleWorker())
    kept = {key for key, value in metrics.items() if key.partition("/")[0] in MEASURED and not math.isnan(value)}
    return Predicted(np.concatenate(logits), {key: metrics[key] for key in metrics if key in kept})


def _batches(saved: LoadedModel, loader: ParquetLoader) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield logits, labels and weights of each batch, without padding rows."""
    model = tf.function(saved.model.call, autograph=False)
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            real = batch.rows >= 0
            inputs = saved.layout.model_inputs(batch.ids, batch.numerical, batch.vectors)
            logits = model(*(tf.constant(matrix) for matrix in inputs)).numpy()
            yield logits[real], batch.labels[real], batch.weights[real]

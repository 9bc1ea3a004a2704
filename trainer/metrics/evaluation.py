"""One pass over an evaluation set: the rows as they come, the metrics at the end."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.errors import DataError
from trainer.metrics import Metric, make_metrics
from trainer.metrics.calibration_curve import CURVE, CalibrationCurve, calibration_curve
from trainer.metrics.collectives import Collectives
from trainer.metrics.joint import joint_logits, joint_rows
from trainer.metrics.rows import Rows, RowStore
from trainer.metrics.score_table import ScoreMetric, score_table
from trainer.tasks import Task, joint_chains, joint_name, restrict_to_sample_space

MEAN = "mean"


class _Measured(NamedTuple):
    """What a set of metrics is of: a task on its sample space, or a task and all that it is given on all rows.

    Attributes:
        task: tells the kind, and which labels there are.
        chain: positions of the tasks whose joint event is measured; a single one for a task by itself.
        metrics: by logged name.
    """

    task: Task
    chain: tuple[int, ...]
    metrics: Mapping[str, Metric]


class Evaluation:
    """Collects logits and labels batch by batch and computes every metric over the rows of all workers.

    A binary task that is given another one is measured twice: on its sample space (the conversions among the clicks),
    and together with all that it is given on all rows (click and conversion, among all).

    Memory on each worker, per row of its own: 4 bytes per logit and label, 4 for the weight, and 8 more with groups
    (one task of one logit: 12, with groups 20). While `result` runs, up to about 150 more, and for a multiclass task
    8 per class.

    Attributes:
        undefined: of the last `result`, a line per task and joint event with metrics that are NaN: which, and why.
        curves: of the last `result`, the calibration curve of each binary task and of each joint event, under
            calibration_curve where there is one task, else calibration_curve/NAME.
    """

    def __init__(self, tasks: Sequence[Task], *, with_group: bool, num_auc_thresholds: int = 0) -> None:
        """Starts empty.

        Args:
            tasks: one per label column that `update` gets.
            with_group: `update` gets group ids, and the metrics that rank within groups are computed.
            num_auc_thresholds: 0 for the exact AUC; see RocAuc.

        Raises:
            ValueError: a number of thresholds that RocAuc does not take, or a task of a kind that is unknown.
        """
        self._tasks = tuple(tasks)
        self._with_group = with_group
        alone = [(index,) for index in range(len(tasks))]
        self._measured: dict[str, _Measured] = {}
        for chain in (*alone, *joint_chains(tasks).values()):
            task = tasks[chain[-1]]
            metrics = make_metrics(task.kind, with_group=with_group, num_auc_thresholds=num_auc_thresholds)
            self._measured[joint_name(tasks, chain)] = _Measured(task, chain, metrics)
        self.curves: dict[str, CalibrationCurve] = {}
        self.undefined: list[str] = []
        self.reset()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of what `result` returns, in its order."""
        unknown = {name: dict.fromkeys(measured.metrics, math.nan) for name, measured in self._measured.items()}
        return tuple(self._by_key(unknown))

    def reset(self) -> None:
        """Forgets all rows."""
        self._store = RowStore(self._tasks, with_group=self._with_group)

    def update(
        self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, group: np.ndarray | None = None
    ) -> None:
        """Adds a batch. Rows of weight 0 are dropped.

        A row does not count for a task where its label is NaN, which is missing, or where the row lies outside the
        task's sample space (`given`). It counts for a task together with all that it is given wherever that joint
        label is known: 0 wherever a label that is given is 0.

        Args:
            logits: [batch, sum of widths] float; the predicted values of regressions.
            labels: [batch, tasks] float.
            weights: [batch] float.
            group: [batch] int64; may be None without groups.

        Raises:
            ValueError: shapes disagree, or the groups are missing.
        """
        self._store.append(logits, restrict_to_sample_space(labels, self._tasks), weights, group)

    def result(self, comm: Collectives) -> dict[str, float]:
        """The metrics over all workers' rows, equal on all workers. A collective.

        Returns:
            NAME -> value for one task. For several, NAME/TASK of each that has the metric, NAME/TASK+TASK of those that
            are given others together with these, and NAME/mean, the mean of the NAME/TASK that are not NaN (NaN
            where all are).

        Raises:
            FloatingPointError: logits that are NaN or infinite. Raised on all workers alike, as is the next.
            DataError: labels or weights that no metric can use.
        """
        values, self.curves, self.undefined = {}, {}, []
        for name, (task, chain, metrics) in self._measured.items():
            rows = self._rows(chain)
            counts = _check_rows(name, task, rows, comm)
            if len(chain) > 1:
                rows = rows._replace(logits=joint_logits(rows.logits))
            values[name], curve = _measure(metrics, rows, comm)
            if unknown := [key for key, value in values[name].items() if math.isnan(value)]:
                self.undefined.append(_why_undefined(name, task, counts, unknown))
            if curve is not None:
                self.curves[CURVE if len(self._tasks) == 1 else f"{CURVE}/{name}"] = curve
        return self._by_key(values)

    def _rows(self, chain: tuple[int, ...]) -> Rows:
        """The rows that count; with several tasks as joint_rows gives them."""
        parts = [self._store.task(index) for index in chain]
        rows = parts[0] if len(parts) == 1 else joint_rows(parts)
        return rows.select(~np.isnan(rows.labels))

    def _by_key(self, values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """The values by name and metric, under the keys that are logged."""
        if len(self._tasks) == 1:
            return dict(values[self._tasks[0].name])
        results: dict[str, float] = {}
        for key in dict.fromkeys(key for metrics in values.values() for key in metrics):
            of_key = {name: metrics[key] for name, metrics in values.items() if key in metrics}
            results |= {f"{key}/{name}": value for name, value in of_key.items()}
            of_tasks = [of_key[task.name] for task in self._tasks if task.name in of_key]
            known = [value for value in of_tasks if not math.isnan(value)]
            results[f"{key}/{MEAN}"] = sum(known) / len(known) if known else math.nan
        return results


def _measure(
    metrics: Mapping[str, Metric], rows: Rows, comm: Collectives
) -> tuple[dict[str, float], CalibrationCurve | None]:
    """Every metric of some rows, and a binary task's calibration curve; all that look at the score table share one."""
    of_table, curve = _measure_table(
        {key: metric for key, metric in metrics.items() if isinstance(metric, ScoreMetric)}, rows, comm
    )
    values = {key: of_table[key] if key in of_table else metric.result(rows, comm) for key, metric in metrics.items()}
    return values, curve


def _measure_table(
    metrics: Mapping[str, ScoreMetric], rows: Rows, comm: Collectives
) -> tuple[dict[str, float], CalibrationCurve | None]:
    """These metrics and the curve alone, so that the table is gone before others need memory."""
    if not metrics:  # of a task that is not binary
        return {}, None
    table = score_table(rows, comm)
    values = {key: metric.of_table(table, rows, comm) for key, metric in metrics.items()}
    return values, calibration_curve(table, rows, comm)


class _Counts(NamedTuple):
    """Rows of all workers that count for a task, and how many of them have a label above 0."""

    rows: int
    positive: int


def _why_undefined(name: str, task: Task, counts: _Counts, keys: Sequence[str]) -> str:
    """Why metrics of a task have no value."""
    if counts.rows == 0:
        why = "no evaluated row counts for it (its label is missing, or the row is outside its sample space)"
    elif task.kind == "binary" and counts.positive in (0, counts.rows):
        why = f"it is {int(counts.positive > 0)} in all {counts.rows:,} evaluated rows"
    elif task.kind == "multiclass":
        why = f"it is one class in all {counts.rows:,} evaluated rows"
    else:
        why = "no group of evaluated rows has both classes"
    return f"label {name!r}: {why}, so that {', '.join(keys)} cannot be computed"


def _check_rows(name: str, task: Task, rows: Rows, comm: Collectives) -> _Counts:
    """Raises what Evaluation.result promises, on all workers together so that none is left waiting."""
    is_wrong_label, wrong_label = _wrong_labels(rows.labels, task)
    faults = (
        ~np.atleast_2d(np.isfinite(rows.logits).T).all(axis=0),
        is_wrong_label,
        ~(np.isfinite(rows.weights) & (rows.weights > 0)),
    )
    own = [len(rows.logits), (rows.labels > 0).sum(), *(fault.sum() for fault in faults)]
    num_rows, positive, logits, labels, weights = comm.sum_array(np.array(own, np.int64)).tolist()
    if logits:
        what = "predicted values" if task.kind == "regression" else "logits"
        raise FloatingPointError(
            f"task {name!r}: {logits} of {num_rows} {what} are NaN or infinite, so that there is nothing to measure. "
            "Either training has diverged: go back to an earlier checkpoint and lower the learning rates. Or the rows "
            "hold extreme numerical values, which check_dataset.py warns of: --amp_dtype float16 holds nothing beyond "
            "65,504; scale them, or use bfloat16 or float32."
        )
    if labels:
        raise DataError(
            f"label {name!r}: {labels} of {num_rows} evaluated rows have {wrong_label}; "
            "check_dataset.py tells where they are."
        )
    if weights:
        raise DataError(
            f"task {name!r}: {weights} of {num_rows} evaluated rows have a sample weight that is negative, NaN or "
            "infinite; expected 0 or more. check_dataset.py tells where they are."
        )
    return _Counts(num_rows, positive)


def _wrong_labels(labels: np.ndarray, task: Task) -> tuple[np.ndarray, str]:
    """Which labels ([rows] bool) no metric of the task can use, and what they have."""
    if task.kind == "regression":
        return np.isinf(labels), "a value that is infinite in float32"
    last = (task.classes or 2) - 1
    is_class = (labels >= 0) & (labels <= last) & (labels == np.floor(labels))
    return (
        ~is_class,
        "a value other than 0 and 1" if last == 1 else f"a value that is no class from 0 to {last}",
    )

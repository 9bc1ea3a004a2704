"""One pass over an evaluation set: the rows as they come, the metrics at the end."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data.errors import DataError
from trainer.metrics import make_metrics
from trainer.metrics.collectives import Collectives
from trainer.metrics.rows import Rows, RowStore

MEAN = "mean"

# Kind of task -> (which labels no metric of it can use, what they are).
_WRONG_LABELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "binary": (lambda labels: (labels != 0) & (labels != 1), "a value other than 0 and 1"),
    "regression": (np.isinf, "a value that is infinite in float32"),
}


class Evaluation:
    """Collects logits and labels batch by batch and computes every metric over the rows of all workers.

    Memory on each worker, per row of its own: 8 * tasks + 4 bytes, and 8 more with groups (one task: 12,
    with groups 20). While `result` runs, up to about 150 more.
    """

    def __init__(
        self,
        task_names: Sequence[str],
        *,
        with_group: bool,
        num_auc_thresholds: int = 0,
        kinds: Sequence[str] | None = None,
    ) -> None:
        """Starts empty.

        Args:
            task_names: one per column that `update` gets.
            with_group: `update` gets group ids, and the metrics that rank within groups are computed.
            num_auc_thresholds: 0 for the exact AUC; see RocAuc.
            kinds: of each task, "binary" or "regression"; None where all are binary.

        Raises:
            ValueError: a number of thresholds that RocAuc does not take, or kinds that are unknown or not
                one per task.
        """
        self._task_names = tuple(task_names)
        self._kinds = ("binary",) * len(self._task_names) if kinds is None else tuple(kinds)
        if len(self._kinds) != len(self._task_names):
            raise ValueError(f"expected a kind for each of {self._task_names}, got {self._kinds}")
        self._with_group = with_group
        self._metrics = [
            make_metrics(kind, with_group=with_group, num_auc_thresholds=num_auc_thresholds) for kind in self._kinds
        ]
        self.reset()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of what `result` returns, in its order."""
        return tuple(self._by_key([dict.fromkeys(metrics, math.nan) for metrics in self._metrics]))

    def reset(self) -> None:
        """Forgets all rows."""
        self._store = RowStore(len(self._task_names), with_group=self._with_group)

    def update(
        self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, group: np.ndarray | None = None
    ) -> None:
        """Adds a batch. Rows of weight 0 are dropped.

        A row whose label is NaN does not count for that task: the label is missing, or the row lies outside
        the task's sample space (`given`). All metrics of a task are over its own sample space.

        Args:
            logits: [batch, tasks] float; the predicted values of regressions.
            labels: [batch, tasks] float.
            weights: [batch] float.
            group: [batch] int64; may be None without groups.

        Raises:
            ValueError: shapes disagree, or the groups are missing.
        """
        self._store.append(logits, labels, weights, group)

    def result(self, comm: Collectives) -> dict[str, float]:
        """The metrics over all workers' rows, equal on all workers. A collective.

        Returns:
            NAME -> value for one task. For several, NAME/TASK of each that has the metric, and NAME/mean, the
            mean of those that are not NaN (NaN where all are).

        Raises:
            FloatingPointError: logits that are NaN or infinite. Raised on all workers alike, as is the next.
            DataError: labels or weights that no metric can use.
        """
        values = []
        for column, (task, kind, metrics) in enumerate(zip(self._task_names, self._kinds, self._metrics, strict=True)):
            rows = self._store.task(column)
            rows = rows.select(~np.isnan(rows.labels))
            _check_rows(task, kind, rows, comm)
            values.append({name: metric.result(rows, comm) for name, metric in metrics.items()})
        return self._by_key(values)

    def _by_key(self, values: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The values by metric, one mapping per task, under the keys that are logged."""
        if len(self._task_names) == 1:
            return dict(values[0])
        results: dict[str, float] = {}
        for name in dict.fromkeys(name for metrics in values for name in metrics):
            of_tasks = {
                task: metrics[name] for task, metrics in zip(self._task_names, values, strict=True) if name in metrics
            }
            results |= {f"{name}/{task}": value for task, value in of_tasks.items()}
            known = [value for value in of_tasks.values() if not math.isnan(value)]
            results[f"{name}/{MEAN}"] = sum(known) / len(known) if known else math.nan
        return results


def _check_rows(task: str, kind: str, rows: Rows, comm: Collectives) -> None:
    """Raises what Evaluation.result promises, on all workers together so that none is left waiting."""
    is_wrong_label, wrong_label = _WRONG_LABELS[kind]
    faults = (
        ~np.isfinite(rows.logits),
        is_wrong_label(rows.labels),
        ~(np.isfinite(rows.weights) & (rows.weights > 0)),
    )
    counts = comm.sum_array(np.array([len(rows.logits), *(fault.sum() for fault in faults)], np.int64))
    num_rows, logits, labels, weights = counts.tolist()
    if logits:
        what = "predicted values" if kind == "regression" else "logits"
        raise FloatingPointError(
            f"task {task!r}: {logits} of {num_rows} {what} are NaN or infinite, so that there is nothing to measure. "
            "Training has diverged: go back to an earlier checkpoint and lower the learning rates."
        )
    if labels:
        raise DataError(
            f"label {task!r}: {labels} of {num_rows} evaluated rows have {wrong_label}; "
            "check_dataset.py tells where they are."
        )
    if weights:
        raise DataError(
            f"task {task!r}: {weights} of {num_rows} evaluated rows have a sample weight that is negative, NaN or "
            "infinite; expected 0 or more. check_dataset.py tells where they are."
        )

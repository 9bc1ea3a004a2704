"""One pass over an evaluation set: the rows as they come, the metrics at the end."""

from collections.abc import Sequence

import numpy as np

from data.errors import DataError
from trainer.metrics import make_metrics
from trainer.metrics.collectives import Collectives
from trainer.metrics.rows import Rows, RowStore


class Evaluation:
    """Collects logits and labels batch by batch and computes every metric over the rows of all workers.

    Memory on each worker, per row of its own: 8 * tasks + 4 bytes, and 8 more with groups (one task: 12,
    with groups 20). While `result` runs, up to about 150 more.
    """

    def __init__(self, task_names: Sequence[str], *, with_group: bool, num_auc_thresholds: int = 0) -> None:
        """Starts empty.

        Args:
            task_names: one per column that `update` gets.
            with_group: `update` gets group ids, and the metrics that rank within groups are computed.
            num_auc_thresholds: 0 for the exact AUC; see RocAuc.

        Raises:
            ValueError: a number of thresholds that RocAuc does not take.
        """
        self._task_names = tuple(task_names)
        self._with_group = with_group
        self._metrics = make_metrics(with_group=with_group, num_auc_thresholds=num_auc_thresholds)
        self.reset()

    def reset(self) -> None:
        """Forgets all rows."""
        self._store = RowStore(len(self._task_names), with_group=self._with_group)

    def update(
        self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, group: np.ndarray | None = None
    ) -> None:
        """Adds a batch. Rows of weight 0 are dropped; a row whose label is NaN does not count for that task.

        Args:
            logits: [batch, tasks] float.
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
            NAME -> value for one task; for several, NAME/TASK of each and NAME/mean over the tasks (NaN
            where a task's is NaN).

        Raises:
            FloatingPointError: logits that are NaN or infinite. Raised on all workers alike, as is the next.
            DataError: labels or weights that no metric can use.
        """
        values = np.empty((len(self._metrics), len(self._task_names)))
        for column, task in enumerate(self._task_names):
            rows = self._store.task(column)
            rows = rows.select(~np.isnan(rows.labels))
            _check_rows(task, rows, comm)
            for line, metric in enumerate(self._metrics.values()):
                values[line, column] = metric.result(rows, comm)
        return self._by_key(values)

    def _by_key(self, values: np.ndarray) -> dict[str, float]:
        """Values [metrics, tasks] under the keys that are logged."""
        if len(self._task_names) == 1:
            return dict(zip(self._metrics, values[:, 0].tolist(), strict=True))
        results = {}
        for key, line in zip(self._metrics, values, strict=True):
            for task, value in zip(self._task_names, line, strict=True):
                results[f"{key}/{task}"] = float(value)
            results[f"{key}/mean"] = float(line.mean())
        return results


def _check_rows(task: str, rows: Rows, comm: Collectives) -> None:
    """Raises what Evaluation.result promises, on all workers together so that none is left waiting."""
    faults = (
        ~np.isfinite(rows.logits),
        (rows.labels != 0) & (rows.labels != 1),
        ~(np.isfinite(rows.weights) & (rows.weights > 0)),
    )
    counts = comm.sum_array(np.array([len(rows.logits), *(fault.sum() for fault in faults)], np.int64))
    num_rows, logits, labels, weights = counts.tolist()
    if logits:
        raise FloatingPointError(
            f"task {task!r}: {logits} of {num_rows} logits are NaN or infinite, so that the rows cannot be ranked. "
            "Training has diverged: go back to an earlier checkpoint and lower the learning rates."
        )
    if labels:
        raise DataError(
            f"label {task!r}: {labels} of {num_rows} evaluated rows have a value other than 0 and 1; "
            "check_dataset.py tells where they are."
        )
    if weights:
        raise DataError(
            f"task {task!r}: {weights} of {num_rows} evaluated rows have a sample weight that is negative, NaN or "
            "infinite; expected 0 or more. check_dataset.py tells where they are."
        )

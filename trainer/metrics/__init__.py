"""Metrics that are exact over the rows of all workers.

A metric keeps no state: `trainer.metrics.evaluation.Evaluation` holds the rows, once for all metrics,
and hands them to each metric at the end. To add one, write a class with a `result` and enter it in METRICS.
"""

from typing import Protocol

from trainer.metrics.collectives import Collectives
from trainer.metrics.log_loss import LogLoss
from trainer.metrics.mean_average_precision import MeanAveragePrecision
from trainer.metrics.roc_auc import RocAuc
from trainer.metrics.rows import Rows


class Metric(Protocol):
    """A number computed from one task's rows, wherever they lie."""

    needs_group: bool

    def result(self, rows: Rows, comm: Collectives) -> float:
        """The metric over the rows of all workers: a collective, the same float on every worker.

        It depends neither on the order of the rows nor on how they are spread over workers (to the
        rounding of float64 sums). NaN where the metric is undefined.

        Args:
            rows: this worker's rows of one task; logits finite, labels 0 or 1, weights above 0.
            comm: this worker's view of the group.
        """


# Logged name -> metric. The names are the public recipe's, and existing log parsers look for them.
METRICS: dict[str, type[Metric]] = {
    "loss_val": LogLoss,
    "auc_roc": RocAuc,
    "streaming_map_val": MeanAveragePrecision,
}


def make_metrics(*, with_group: bool, num_auc_thresholds: int = 0) -> dict[str, Metric]:
    """The metrics of a binary task, by logged name.

    Args:
        with_group: rows carry a group id; without one, the metrics that rank within groups are left out.
        num_auc_thresholds: 0 for the exact AUC; see RocAuc.
    """
    metrics = {name: metric() for name, metric in METRICS.items() if with_group or not metric.needs_group}
    metrics["auc_roc"] = RocAuc(num_auc_thresholds)
    return metrics

"""Metrics that are exact over the rows of all workers.

Metrics are stateless: `trainer.metrics.evaluation.Evaluation` stores the rows once for all metrics and passes them to
each metric at the end. To add a metric, implement `Metric` in a new module and register it in METRICS_OF_KIND.
"""

from typing import Protocol

from trainer.metrics.auc import PrecisionRecallAuc, RocAuc
from trainer.metrics.calibration import Calibration, CalibrationError
from trainer.metrics.grouped import GroupedAuc, MeanAveragePrecision
from trainer.metrics.log_loss import LogLoss, NormalizedEntropy
from trainer.metrics.metric import Collectives, Direction, Rows
from trainer.metrics.multiclass import Accuracy, OneVersusRestAuc, SoftmaxLoss, SoftmaxNormalizedEntropy
from trainer.metrics.regression import MeanAbsoluteError, MeanSquaredError, RootMeanSquaredError


class Metric(Protocol):
    """Interface of a metric: a number computed from one task's rows, which are distributed over workers.

    Attributes:
        needs_group: whether the metric uses the rows' groups.
        direction: which values are better; the same for all metrics of one name.
    """

    needs_group: bool
    direction: Direction

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Computes the metric over the rows of all workers: a collective, with the same float on every worker.

        The result does not depend on the order of rows or on how they are distributed over workers (up to the rounding
        of float64 sums). NaN where the metric is undefined.

        Args:
            rows: this worker's rows of one task, with finite logits, labels 0 or 1 (multiclass: a class; regression:
                finite) and positive weights.
            comm: collectives of the group of workers.
        """


# Kind of task -> logged name -> metric. The first three names are those of the public recipe, which existing log
# parsers expect.
METRICS_OF_KIND: dict[str, dict[str, type[Metric]]] = {
    "binary": {
        "loss_val": LogLoss,
        "auc_roc": RocAuc,
        "streaming_map_val": MeanAveragePrecision,
        "pr_auc": PrecisionRecallAuc,
        "gauc": GroupedAuc,
        "normalized_entropy": NormalizedEntropy,
        "calibration": Calibration,
        "calibration_error": CalibrationError,
    },
    "multiclass": {
        "loss_val": SoftmaxLoss,
        "auc_roc": OneVersusRestAuc,
        "accuracy": Accuracy,
        "normalized_entropy": SoftmaxNormalizedEntropy,
    },
    "regression": {
        "loss_val": MeanSquaredError,
        "rmse": RootMeanSquaredError,
        "mae": MeanAbsoluteError,
    },
}
METRICS = METRICS_OF_KIND["binary"]  # the default kind


def make_metrics(kind: str = "binary", *, with_group: bool, num_auc_thresholds: int = 0) -> dict[str, Metric]:
    """Creates the metrics of a task, by logged name.

    Args:
        kind: kind of task, a key of METRICS_OF_KIND.
        with_group: whether rows carry a group ID; if not, metrics that rank within groups are omitted.
        num_auc_thresholds: 0 for the exact AUC; see RocAuc.

    Raises:
        ValueError: the kind has no metrics, or RocAuc does not support this number of thresholds.
    """
    if kind not in METRICS_OF_KIND:
        raise ValueError(f"no metric is known for tasks of kind {kind!r}, only for {', '.join(METRICS_OF_KIND)}")
    chosen = {name: metric for name, metric in METRICS_OF_KIND[kind].items() if with_group or not metric.needs_group}
    with_thresholds = (RocAuc, OneVersusRestAuc)
    return {
        name: metric(num_auc_thresholds) if metric in with_thresholds else metric() for name, metric in chosen.items()
    }


def direction_of(key: str) -> Direction:
    """Returns which values of a logged key are better.

    A key is a metric's NAME, NAME/TASK, NAME/TASK+TASK or NAME/mean.

    Raises:
        ValueError: no metric has that name.
    """
    directions = {name: metric.direction for metrics in METRICS_OF_KIND.values() for name, metric in metrics.items()}
    name = key.split("/", 1)[0]
    if name not in directions:
        raise ValueError(f"{key!r}: there is no metric {name!r}, only {', '.join(directions)}")
    return directions[name]


def is_better(key: str, new: float, old: float | None) -> bool:
    """Returns whether `new` is strictly better than `old` (None: no value yet) for a logged key. NaN never is.

    Raises:
        ValueError: no metric has that name.
    """
    return direction_of(key).is_better(new, old)

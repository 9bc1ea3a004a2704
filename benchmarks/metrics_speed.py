"""Times the metrics on one worker: one JSON line per result.

    python -m benchmarks.metrics_speed [--rows 1000000 10000000] [--repeats 3]

Fields: metric, rows, data (what makes the case hard), seconds (wall clock, the best of the repeats), cpu_seconds (of
this process, which a busy machine inflates less), seconds_per_million_rows (of cpu_seconds), peak_bytes_per_row
(NumPy's allocations while the metric runs, the rows themselves not counted).
"""

import argparse
import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np

from trainer.metrics.auc import RocAuc
from trainer.metrics.calibration import CalibrationCurve, calibration_curve
from trainer.metrics.metric import Metric
from trainer.metrics.rows import Rows
from trainer.metrics.score_table import score_table
from trainer.tasks.binary import BinaryTask
from trainer.tasks.multiclass import MulticlassTask
from trainer.tasks.regression import RegressionTask


class Alone:
    """The group of one."""

    rank, size = 0, 1

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        return array

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def exchange_rows(self, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        return rows

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        return data or b""


class CurveAlone:
    """The calibration curve without the score table, which an evaluation makes for the metrics in any case."""

    def __init__(self, rows: Rows):
        self._table = score_table(rows, Alone())

    def result(self, rows: Rows, comm: Alone) -> CalibrationCurve:
        return calibration_curve(self._table, rows, comm)


def click_log(count: int) -> Rows:
    """Draw clicks as in a test set sorted by display: groups of 5 on average, hardly a tie."""
    random = np.random.default_rng(count)
    logits = random.standard_normal(count).astype(np.float32)
    labels = (random.random(count) < 0.2).astype(np.float32)
    return Rows(logits, labels, np.ones(count, np.float32), np.sort(random.integers(0, count // 5, count)))


def shuffled(rows: Rows, names: Callable[[np.ndarray], np.ndarray]) -> Rows:
    """Put the groups in no order, under other ids."""
    return rows._replace(group=names(np.random.default_rng(1).permutation(rows.group)))


def cases(count: int) -> list[tuple[str, Metric | CurveAlone, str, Rows]]:
    """Return cases: (name, metric, what is hard about the rows, rows)."""
    rows = click_log(count)
    few_scores = rows._replace(logits=np.round(rows.logits, 1))
    one_large = rows._replace(group=rows.group * (rows.group % 10 == 0))
    no_order = shuffled(rows, lambda group: group)
    long_ids = shuffled(rows, lambda group: group << 36)
    binary = {metric.name: metric() for metric in BinaryTask.metrics}
    over_all = [
        (name, binary[name], data, case)
        for name in ("auc_roc", "pr_auc", "calibration_error")
        for data, case in (("hardly a tie", rows), ("about 90 scores", few_scores))
    ]
    in_groups = [
        (name, binary[name], data, case)
        for name in ("streaming_map_val", "gauc")
        for data, case in (
            ("sorted by group", rows),
            ("groups in no order", no_order),
            ("groups in no order, 60-bit ids", long_ids),
            ("9 rows in 10 in one group", one_large),
        )
    ]
    means = [(name, binary[name], "hardly a tie", rows) for name in ("loss_val", "normalized_entropy", "calibration")]
    errors = [(metric.name, metric(), "regression", rows) for metric in RegressionTask.metrics]
    random = np.random.default_rng(count)
    four = rows._replace(
        logits=random.standard_normal((count, 4)).astype(np.float32),
        labels=random.integers(0, 4, count).astype(np.float32),
    )
    of_classes = [(metric.name, metric(), "4 classes", four) for metric in MulticlassTask.metrics]
    with_thresholds = ("auc_roc, 8000 thresholds", RocAuc(8000), "hardly a tie", rows)
    curves = [
        ("calibration_curve, the table made", CurveAlone(case), data, case)
        for data, case in (("hardly a tie", rows), ("about 90 scores", few_scores))
    ]
    return [*over_all, *curves, with_thresholds, *in_groups, *means, *errors, *of_classes]


def measure(name: str, metric: Metric | CurveAlone, data: str, rows: Rows, repeats: int) -> dict[str, object]:
    def run() -> None:
        metric.result(rows, Alone())

    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    count = len(rows.logits)
    return {
        "metric": name,
        "rows": count,
        "data": data,
        "seconds": round(min(walls), 4),
        "cpu_seconds": round(min(cpus), 4),
        "seconds_per_million_rows": round(min(cpus) / count * 1e6, 4),
        "peak_bytes_per_row": round(peak / count, 1),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000], help="numbers of rows")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each case, the best of which counts")
    arguments = parser.parse_args(argv)
    for count in arguments.rows:
        for case in cases(count):
            print(json.dumps(measure(*case, repeats=arguments.repeats)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

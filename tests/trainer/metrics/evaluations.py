"""Rows for tests, and how they reach an Evaluation."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from tests.trainer.metrics.workers import LocalWorkers, ThreadWorker
from trainer.metrics.calibration import as_records
from trainer.tasks.binary import BinaryTask
from trainer.tasks.evaluation import Evaluation
from trainer.tasks.jrc import JrcTask
from trainer.tasks.listwise import ListwiseTask
from trainer.tasks.log1p import Log1pTask
from trainer.tasks.multiclass import MulticlassTask
from trainer.tasks.pairwise import PairwiseTask
from trainer.tasks.poisson import PoissonTask
from trainer.tasks.regression import RegressionTask
from trainer.tasks.tweedie import TweedieTask
from trainer.tasks.weighted_logistic import WeightedLogisticTask
from trainer.tasks.ziln import ZilnTask

CLICK = BinaryTask("click")
TASK_OF_KIND = {
    "binary": CLICK,
    "multiclass": MulticlassTask("click", num_classes=3),
    "regression": RegressionTask("click"),
    "log1p": Log1pTask("click"),
    "poisson": PoissonTask("click"),
    "tweedie": TweedieTask("click", power=1.3),
    "ziln": ZilnTask("click"),
    "weighted_logistic": WeightedLogisticTask("click"),
    "pairwise": PairwiseTask("click"),
    "listwise": ListwiseTask("click"),
    "jrc": JrcTask("click"),
}


class TestRows(NamedTuple):
    """Rows of one task, [rows] each; the logits of several classes [rows, classes]."""

    __test__ = False

    logits: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    group: np.ndarray

    @property
    def counted(self) -> "TestRows":
        """The rows with a weight and a label."""
        mask = (self.weights > 0) & ~np.isnan(self.labels)
        return TestRows(*(column[mask] for column in self))

    def permuted(self, random: np.random.Generator) -> "TestRows":
        order = random.permutation(len(self.logits))
        return TestRows(*(column[order] for column in self))


def rows_of(logits, labels, weights=None, group=None) -> TestRows:
    """Rows that are written out; weight 1 and group 0 where nothing is said."""
    logits, labels = np.array(logits, np.float32), np.array(labels, np.float32)
    weights = np.ones(len(logits), np.float32) if weights is None else np.array(weights, np.float32)
    group = np.zeros(len(logits), np.int64) if group is None else np.array(group, np.int64)
    return TestRows(logits, labels, weights, group)


def evaluate(rows: TestRows, **how) -> dict[str, float]:
    """The metrics of one task; see evaluated."""
    return evaluated(rows, **how)[0]


def curves(rows: TestRows, **how) -> dict[str, dict[str, list[float]]]:
    """The calibration curves of one task as they are logged; see evaluated."""
    return evaluated(rows, **how)[1]


def evaluated(
    rows: TestRows,
    *,
    kind: str = "binary",
    workers: int = 1,
    batch_size: int | None = None,
    borders: list[int] | None = None,
    **options,
) -> tuple[dict[str, float], dict[str, dict[str, list[float]]]]:
    """Metrics and curves of one task, with the rows cut into workers at `borders` (default: evenly) and into batches.

    `options` are those of Evaluation.
    Fails unless every worker gets the same result.
    """
    count = len(rows.logits)
    if borders is None:
        borders = [worker * count // workers for worker in range(1, workers)]
    edges = [0, *borders, count]

    def work(comm: ThreadWorker) -> tuple[dict[str, float], dict[str, dict[str, list[float]]]]:
        task = TASK_OF_KIND[kind]
        evaluation = Evaluation([task], with_group=True, **options)
        first, last = edges[comm.rank : comm.rank + 2]
        step = batch_size or max(last - first, 1)
        for start in range(first, last, step):
            batch = TestRows(*(column[start : min(start + step, last)] for column in rows))
            logits = batch.logits.reshape(-1, task.width)
            evaluation.update(logits, batch.labels[:, None], batch.weights, batch.group)
        return evaluation.result(comm), as_records(evaluation.curves)

    results = LocalWorkers(len(edges) - 1).run(work)
    for result in results:
        np.testing.assert_equal(result, results[0])
    return results[0]


def make_rows(
    count: int, *, groups: int, distinct_scores: int | None = None, positives: float = 0.3, seed: int = 0
) -> TestRows:
    """Random rows; `distinct_scores` None leaves hardly any tie. One row in ten has weight 0."""
    random = np.random.default_rng(seed)
    logits = random.standard_normal(count)
    if distinct_scores is not None:
        logits = random.integers(0, distinct_scores, count) / 4 - distinct_scores / 8
    return TestRows(
        logits.astype(np.float32),
        (random.random(count) < positives).astype(np.float32),
        (random.choice([0, 0.5, 1, 1, 2.25], count, p=[0.1, 0.2, 0.3, 0.2, 0.2])).astype(np.float32),
        random.integers(0, groups, count) * 10**15 - 5 * 10**17,
    )


SCORES = st.sampled_from([-80.0, -2.5, -0.5, -0.0, 0.0, 1e-30, 0.5, 0.75, 3.0, 90.0])
WEIGHTS = st.sampled_from([0.0, 0.1, 1.0, 1.0, 1.0, 3.5])
GROUPS = st.sampled_from([-(2**63), -7, 0, 1, 2, 2**63 - 1])


VALUES = st.one_of(st.sampled_from([-2.5, 0.0, 0.1, 7.0]), st.floats(-1e6, 1e6, width=32))
AMOUNTS = VALUES.map(abs)


@st.composite
def small_rows(draw: st.DrawFn, max_rows: int = 40, kind: str = "binary") -> TestRows:
    """Any rows, with many ties."""
    binary = st.sampled_from([0.0, 0.0, 1.0])
    scores, labels = {
        **dict.fromkeys(("binary", "pairwise", "listwise"), (SCORES, binary)),
        "jrc": (st.tuples(SCORES, SCORES), binary),
        "multiclass": (st.tuples(SCORES, SCORES, SCORES), st.sampled_from([0.0, 0.0, 1.0, 2.0])),
        "regression": (VALUES, VALUES),
        "ziln": (st.tuples(SCORES, SCORES, SCORES), AMOUNTS),
    }.get(kind, (SCORES, AMOUNTS))
    row = st.tuples(scores, labels, WEIGHTS, GROUPS)
    rows = draw(st.lists(row, max_size=max_rows))
    columns = list(zip(*rows, strict=True)) or [()] * 4
    dtypes = (np.float32, np.float32, np.float32, np.int64)
    logits, *others = (np.array(column, dtype) for column, dtype in zip(columns, dtypes, strict=True))
    width = TASK_OF_KIND[kind].width
    return TestRows(logits.reshape(len(rows), width) if width > 1 else logits, *others)


@st.composite
def cuts(draw: st.DrawFn, count: int) -> list[int]:
    """Borders between 1 to 4 workers, uneven ones and empty workers among them."""
    return sorted(draw(st.lists(st.integers(0, count), max_size=3)))

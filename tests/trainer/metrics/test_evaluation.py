import numpy as np
import pytest

from data.errors import DataError
from tests.trainer.metrics.evaluations import TestRows, evaluate, make_rows
from tests.trainer.metrics.workers import LocalWorkers
from trainer.metrics import METRICS
from trainer.metrics.evaluation import Evaluation

KEYS = {"loss_val", "auc_roc", "streaming_map_val"}


@pytest.mark.parametrize("batch_size", [1, 7, None])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_batches_and_workers_change_no_metric(batch_size, workers):
    rows = make_rows(500, groups=60, distinct_scores=30)
    expected = evaluate(rows)
    assert expected.keys() == KEYS == METRICS.keys()
    assert evaluate(rows, workers=workers, batch_size=batch_size) == pytest.approx(expected, rel=1e-12, abs=0)


def test_rows_of_weight_0_change_nothing():
    rows = make_rows(300, groups=20)
    assert (rows.weights == 0).any()
    assert evaluate(rows) == evaluate(rows.counted)


def test_without_groups_there_is_no_map():
    evaluation = Evaluation(["click"], with_group=False)
    evaluation.update(np.array([[1.0], [0.0]]), np.array([[1.0], [0.0]]), np.ones(2))
    (result,) = LocalWorkers(1).run(evaluation.result)
    assert result.keys() == KEYS - {"streaming_map_val"}


def test_a_reset_evaluation_starts_anew():
    rows, others = make_rows(100, groups=9, seed=1), make_rows(80, groups=9, seed=2)
    evaluation = Evaluation(["click"], with_group=True)
    for batch in (others, rows):
        evaluation.reset()
        evaluation.update(batch.logits[:, None], batch.labels[:, None], batch.weights, batch.group)
    assert LocalWorkers(1).run(evaluation.result) == [evaluate(rows)]


def test_asking_twice_gives_the_same_answer():
    rows = make_rows(100, groups=9)
    evaluation = Evaluation(["click"], with_group=True)
    evaluation.update(rows.logits[:, None], rows.labels[:, None], rows.weights, rows.group)
    assert LocalWorkers(1).run(evaluation.result) == LocalWorkers(1).run(evaluation.result)


def test_batches_may_be_overwritten_after_the_update():
    rows = make_rows(100, groups=9)
    expected = evaluate(rows)
    evaluation = Evaluation(["click"], with_group=True)
    batch = TestRows(*(column.copy() for column in rows))
    evaluation.update(batch.logits[:, None], batch.labels[:, None], batch.weights, batch.group)
    for column in batch:
        column[:] = 1
    assert LocalWorkers(1).run(evaluation.result) == [expected]


@pytest.mark.parametrize("workers", [1, 3])
def test_each_of_several_tasks_has_its_own_rows_and_there_is_a_mean(workers):
    click, buy = make_rows(300, groups=20, seed=1), make_rows(300, groups=20, seed=2)
    unknown = np.random.default_rng(3).random(300) < 0.4
    buy = TestRows(buy.logits, np.where(unknown, np.nan, buy.labels).astype(np.float32), click.weights, click.group)

    def work(comm):
        part = slice(comm.rank * 300 // workers, (comm.rank + 1) * 300 // workers)
        evaluation = Evaluation(["click", "buy"], with_group=True)
        logits, labels = (np.stack(pair, axis=1)[part] for pair in zip(click[:2], buy[:2], strict=True))
        evaluation.update(logits, labels, click.weights[part], click.group[part])
        return evaluation.result(comm)

    alone = {"click": evaluate(click), "buy": evaluate(buy.counted)}
    expected = {f"{key}/{task}": alone[task][key] for key in KEYS for task in alone}
    expected |= {f"{key}/mean": (alone["click"][key] + alone["buy"][key]) / 2 for key in KEYS}
    for result in LocalWorkers(workers).run(work):
        assert result == pytest.approx(expected, rel=1e-12, abs=0)


def failures(rows: TestRows, workers: int = 2) -> list[BaseException]:
    """What each worker raises; only the last one's rows may be at fault."""

    def work(comm):
        evaluation = Evaluation(["click"], with_group=True)
        part = slice(comm.rank * len(rows.logits) // workers, (comm.rank + 1) * len(rows.logits) // workers)
        evaluation.update(rows.logits[part, None], rows.labels[part, None], rows.weights[part], rows.group[part])
        return evaluation.result(comm)

    return LocalWorkers(workers).outcomes(work)


def with_last(column: np.ndarray, *values: float) -> np.ndarray:
    return np.concatenate([column[: -len(values)], np.array(values, column.dtype)])


def test_logits_that_cannot_be_ranked_fail_on_all_workers_and_are_counted():
    rows = make_rows(50, groups=4)._replace(weights=np.ones(50, np.float32))
    for failure in failures(rows._replace(logits=with_last(rows.logits, np.nan, np.inf, -np.inf))):
        assert isinstance(failure, FloatingPointError)
        assert "'click': 3 of 50 logits are NaN or infinite" in str(failure)


def test_logits_of_rows_that_do_not_count_may_be_anything():
    rows = make_rows(50, groups=4)
    spoilt = rows._replace(logits=np.where(rows.weights == 0, np.nan, rows.logits).astype(np.float32))
    assert evaluate(spoilt) == evaluate(rows)


def test_labels_other_than_0_and_1_fail_on_all_workers():
    rows = make_rows(50, groups=4)._replace(weights=np.ones(50, np.float32))
    for failure in failures(rows._replace(labels=with_last(rows.labels, 2, 0.5))):
        assert isinstance(failure, DataError)
        assert "'click': 2 of 50 evaluated rows have a value other than 0 and 1" in str(failure)


@pytest.mark.parametrize("weight", [-1, np.nan, np.inf])
def test_weights_that_cannot_weigh_fail_on_all_workers(weight):
    rows = make_rows(50, groups=4)._replace(weights=np.ones(50, np.float32))
    for failure in failures(rows._replace(weights=with_last(rows.weights, weight))):
        assert isinstance(failure, DataError)
        assert "1 of 50 evaluated rows have a sample weight" in str(failure)


@pytest.mark.parametrize(
    ("logits", "labels", "group"),
    [((3, 2), (3, 1), (3,)), ((3, 1), (2, 1), (3,)), ((3, 1), (3, 1), (4,)), ((3,), (3, 1), (3,))],
)
def test_batches_whose_shapes_disagree_are_refused(logits, labels, group):
    evaluation = Evaluation(["click"], with_group=True)
    with pytest.raises(ValueError, match="expected rows of shape"):
        evaluation.update(np.ones(logits), np.ones(labels), np.ones(3), np.ones(group, np.int64))


def test_a_batch_without_the_groups_that_map_needs_is_refused():
    with pytest.raises(ValueError, match="group id"):
        Evaluation(["click"], with_group=True).update(np.ones((1, 1)), np.ones((1, 1)), np.ones(1), None)

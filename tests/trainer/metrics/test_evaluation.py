import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.spec.task_types import TASK_TYPES
from tests.trainer.metrics.evaluations import (
    CLICK,
    TASK_OF_KIND,
    TestRows,
    cuts,
    evaluate,
    make_rows,
    rows_of,
    small_rows,
)
from tests.trainer.metrics.workers import LocalWorkers
from trainer.metrics.rows import Rows
from trainer.metrics.score_table import score_table
from trainer.tasks.binary import BinaryTask
from trainer.tasks.evaluation import Evaluation, is_better
from trainer.tasks.multiclass import MulticlassTask
from trainer.tasks.regression import RegressionTask

PUBLIC = {"loss_val", "auc_roc", "streaming_map_val"}
IN_GROUPS = {"streaming_map_val", "gauc"}
KEYS = PUBLIC | {"gauc", "pr_auc", "normalized_entropy", "calibration", "calibration_error"}


@pytest.mark.parametrize("batch_size", [1, 7, None])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_batches_and_workers_change_no_metric(batch_size, workers):
    rows = make_rows(500, groups=60, distinct_scores=30)
    expected = evaluate(rows)
    assert expected.keys() == KEYS
    assert evaluate(rows, workers=workers, batch_size=batch_size) == pytest.approx(expected, rel=1e-12, abs=0)


def test_rows_of_weight_0_change_nothing():
    rows = make_rows(300, groups=20)
    assert (rows.weights == 0).any()
    assert evaluate(rows) == evaluate(rows.counted)


def test_without_groups_nothing_is_ranked_within_groups():
    evaluation = Evaluation([CLICK], with_group=False)
    evaluation.update(np.array([[1.0], [0.0]]), np.array([[1.0], [0.0]]), np.ones(2))
    (result,) = LocalWorkers(1).run(evaluation.result)
    assert result.keys() == KEYS - IN_GROUPS


@pytest.mark.parametrize("thresholds", [0, 50])
def test_metrics_share_one_score_table(thresholds, monkeypatch):
    rows, made = make_rows(400, groups=30, distinct_scores=90), []
    counted = rows.counted
    monkeypatch.setattr("trainer.tasks.evaluation.score_table", lambda *of: made.append(of) or score_table(*of))
    together = evaluate(rows, workers=2, num_auc_thresholds=thresholds)
    assert len(made) == 2  # one on each worker

    def alone(comm):
        part = slice(comm.rank * len(counted.logits) // 2, (comm.rank + 1) * len(counted.logits) // 2)
        mine = Rows(*(column[part] for column in counted))
        return {metric.name: metric.create(thresholds).result(mine, comm) for metric in CLICK.metrics}

    for result in LocalWorkers(2).run(alone):
        assert result == pytest.approx(together, abs=1e-12)


def test_reset_discards_all_rows():
    rows, others = make_rows(100, groups=9, seed=1), make_rows(80, groups=9, seed=2)
    evaluation = Evaluation([CLICK], with_group=True)
    for batch in (others, rows):
        evaluation.reset()
        evaluation.update(batch.logits[:, None], batch.labels[:, None], batch.weights, batch.group)
    assert LocalWorkers(1).run(evaluation.result) == [evaluate(rows)]


def test_asking_twice_gives_the_same_answer():
    rows = make_rows(100, groups=9)
    evaluation = Evaluation([CLICK], with_group=True)
    evaluation.update(rows.logits[:, None], rows.labels[:, None], rows.weights, rows.group)
    assert LocalWorkers(1).run(evaluation.result) == LocalWorkers(1).run(evaluation.result)


def test_batches_may_be_overwritten_after_the_update():
    rows = make_rows(100, groups=9)
    expected = evaluate(rows)
    evaluation = Evaluation([CLICK], with_group=True)
    batch = TestRows(*(column.copy() for column in rows))
    evaluation.update(batch.logits[:, None], batch.labels[:, None], batch.weights, batch.group)
    for column in batch:
        column[:] = 1
    assert LocalWorkers(1).run(evaluation.result) == [expected]


@pytest.mark.parametrize("workers", [1, 3])
def test_tasks_have_their_own_rows_and_a_mean(workers):
    click, buy = make_rows(300, groups=20, seed=1), make_rows(300, groups=20, seed=2)
    unknown = np.random.default_rng(3).random(300) < 0.4
    buy = TestRows(buy.logits, np.where(unknown, np.nan, buy.labels).astype(np.float32), click.weights, click.group)

    def work(comm):
        part = slice(comm.rank * 300 // workers, (comm.rank + 1) * 300 // workers)
        evaluation = Evaluation([CLICK, BinaryTask("buy")], with_group=True)
        logits, labels = (np.stack(pair, axis=1)[part] for pair in zip(click[:2], buy[:2], strict=True))
        evaluation.update(logits, labels, click.weights[part], click.group[part])
        return evaluation.result(comm)

    alone = {"click": evaluate(click), "buy": evaluate(buy.counted)}
    expected = {f"{key}/{task}": alone[task][key] for key in KEYS for task in alone}
    expected |= {f"{key}/mean": (alone["click"][key] + alone["buy"][key]) / 2 for key in KEYS}
    for result in LocalWorkers(workers).run(work):
        assert result == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("workers", [1, 3])
def test_tasks_have_the_metrics_of_their_types(workers):
    click, watched = make_rows(200, groups=20, seed=1), make_rows(200, groups=20, seed=2)
    minutes = watched._replace(
        labels=np.where(click.labels == 1, watched.logits * 3, np.nan).astype(np.float32), weights=click.weights
    )

    def work(comm):
        part = slice(comm.rank * 200 // workers, (comm.rank + 1) * 200 // workers)
        evaluation = Evaluation([CLICK, RegressionTask("minutes")], with_group=True)
        logits, labels = (np.stack(pair, axis=1)[part] for pair in zip(click[:2], minutes[:2], strict=True))
        evaluation.update(logits, labels, click.weights[part], click.group[part])
        return evaluation.result(comm), evaluation.keys

    alone = {"click": evaluate(click), "minutes": evaluate(minutes.counted, kind="regression")}
    expected = {f"{key}/{task}": value for task, values in alone.items() for key, value in values.items()}
    expected |= {f"{key}/mean": value for values in alone.values() for key, value in values.items()}
    expected["loss_val/mean"] = (alone["click"]["loss_val"] + alone["minutes"]["loss_val"]) / 2
    for result, keys in LocalWorkers(workers).run(work):
        assert result == pytest.approx(expected, rel=1e-12, abs=0)
        assert keys == tuple(result)


def test_the_mean_is_over_the_tasks_that_have_a_value():
    rows = make_rows(50, groups=5)
    evaluation = Evaluation([CLICK, BinaryTask("never")], with_group=True)
    labels = np.stack([rows.labels, np.zeros(50)], axis=1)
    evaluation.update(np.stack([rows.logits] * 2, axis=1), labels, rows.weights, rows.group)
    (result,) = LocalWorkers(1).run(evaluation.result)
    assert np.isnan(result["auc_roc/never"])
    assert result["auc_roc/mean"] == result["auc_roc/click"]
    assert result["loss_val/mean"] == (result["loss_val/click"] + result["loss_val/never"]) / 2


def test_the_mean_is_nan_where_no_task_has_a_value():
    evaluation = Evaluation([CLICK, BinaryTask("buy")], with_group=True)
    evaluation.update(np.ones((3, 2)), np.zeros((3, 2)), np.ones(3), np.zeros(3, np.int64))
    (result,) = LocalWorkers(1).run(evaluation.result)
    assert np.isnan(result["auc_roc/mean"])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_metric_without_a_value_says_why(workers):
    """Rows 0 to 3: never bought, always seen, one class of color, clicks that each have a group of their own."""
    tasks = [
        BinaryTask("click"),
        BinaryTask("buy", given=0),
        BinaryTask("seen"),
        MulticlassTask("color", num_classes=3),
        RegressionTask("spent"),
    ]
    labels = np.array([[1, 0, 1, 2, np.nan], [0, 0, 1, 2, np.nan], [1, 0, 1, 2, np.nan], [0, 0, 1, 2, np.nan]])
    logits, group = np.linspace(-1, 1, 28).reshape(4, 7), np.arange(4)
    evaluations = [Evaluation(tasks, with_group=True) for _ in range(workers)]

    def measure(comm):
        mine, evaluation = slice(comm.rank * 4 // workers, (comm.rank + 1) * 4 // workers), evaluations[comm.rank]
        evaluation.update(logits[mine], labels[mine], np.ones(4 // workers), group[mine])
        evaluation.result(comm)
        return evaluation.undefined

    for undefined in LocalWorkers(workers).run(measure):
        assert [line.partition(", so that ")[0] for line in undefined] == [
            "label 'click': no group of evaluated rows has both classes",
            "label 'buy': it is 0 in all 2 evaluated rows",
            "label 'seen': it is 1 in all 4 evaluated rows",
            "label 'color': it is one class in all 4 evaluated rows",
            "label 'spent': no evaluated row counts for it "
            "(its label is missing, or the row is outside its sample space)",
            "label 'click+buy': it is 0 in all 4 evaluated rows",
        ]
        assert undefined[0].endswith("so that gauc cannot be computed")


def test_keys_of_one_task_are_the_plain_names():
    assert set(Evaluation([CLICK], with_group=True).keys) == KEYS
    assert Evaluation([RegressionTask("minutes")], with_group=True).keys == ("loss_val", "rmse", "mae")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_row_order_and_worker_change_no_metric(data):
    kind = data.draw(st.sampled_from(sorted(TASK_TYPES)))
    rows = data.draw(small_rows(kind=kind))
    expected = evaluate(rows, kind=kind)
    shuffled = rows.permuted(np.random.default_rng(data.draw(st.integers(0, 99))))
    actual = evaluate(shuffled, borders=data.draw(cuts(len(rows.logits))), batch_size=3, kind=kind)
    assert actual.keys() == {metric.name for metric in TASK_OF_KIND[kind].metrics}
    assert actual == pytest.approx(expected, rel=1e-11, abs=1e-15, nan_ok=True)


@pytest.mark.parametrize("kind", sorted(TASK_TYPES))
def test_every_metric_calls_the_better_model_better(kind):
    rows = make_rows(2000, groups=100)
    random = np.random.default_rng(5)
    width = TASK_OF_KIND[kind].width
    if width > 1:
        rows = rows._replace(logits=random.standard_normal((2000, width)).astype(np.float32))
    if kind == "log1p":
        rows = rows._replace(logits=np.abs(rows.logits))

    def click(logits: np.ndarray) -> np.ndarray:
        return random.random(2000) < 1 / (1 + np.exp(-logits))

    truth = {  # so that a model with these logits is as good as can be
        **dict.fromkeys(("binary", "pairwise", "listwise"), click),
        "jrc": lambda logits: click(logits[:, 1] - logits[:, 0]),
        "multiclass": lambda logits: np.argmax(logits + random.gumbel(size=(2000, 3)), axis=1),
        "regression": lambda logits: logits,
        "log1p": np.expm1,
        "poisson": lambda logits: random.poisson(np.exp(logits)),
        "tweedie": lambda logits: random.gamma(1, np.exp(logits)),
        "ziln": lambda logits: (
            click(logits[:, 0]) * random.lognormal(logits[:, 1], 0.01 + np.log1p(np.exp(logits[:, 2])))
        ),
        "weighted_logistic": lambda logits: (random.random(2000) < 0.5) * np.exp(logits),
    }[kind](rows.logits)
    good = rows._replace(labels=truth.astype(np.float32))
    bad = good._replace(logits=good.logits + (1 + random.standard_normal(rows.logits.shape)).astype(np.float32))
    values = [evaluate(model, kind=kind) for model in (good, bad)]
    for key in values[0]:
        better, worse = (value[key] for value in values)
        assert is_better(key, better, worse)
        assert not is_better(key, worse, better)


def failures(rows: TestRows, workers: int = 2, kind: str = "binary") -> list[BaseException]:
    """What each worker raises; only the last one's rows may be at fault."""

    def work(comm):
        task = TASK_OF_KIND[kind]
        evaluation = Evaluation([task], with_group=True)
        part = slice(comm.rank * len(rows.logits) // workers, (comm.rank + 1) * len(rows.logits) // workers)
        logits = rows.logits[part].reshape(-1, task.width)
        evaluation.update(logits, rows.labels[part, None], rows.weights[part], rows.group[part])
        return evaluation.result(comm)

    return LocalWorkers(workers).outcomes(work)


def with_last(column: np.ndarray, *values: float) -> np.ndarray:
    return np.concatenate([column[: -len(values)], np.array(values, column.dtype)])


def test_non_finite_logits_fail_on_all_workers():
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


@pytest.mark.parametrize("label", [3, -1, 0.5, np.inf])
def test_labels_that_are_no_class_fail_on_all_workers(label):
    rows = rows_of(np.eye(3), [0, 2, label])
    for failure in failures(rows, kind="multiclass"):
        assert isinstance(failure, DataError)
        assert "'click': 1 of 3 evaluated rows have a value that is not a class from 0 to 2" in str(failure)


def test_a_row_with_one_logit_that_is_nan_is_one_row():
    rows = rows_of([[0, 0, np.nan], [0, np.inf, np.nan], [0, 0, 0]], [0, 1, 2])
    for failure in failures(rows, kind="multiclass"):
        assert isinstance(failure, FloatingPointError)
        assert "'click': 2 of 3 logits are NaN or infinite" in str(failure)


def test_regression_takes_any_finite_values():
    rows = rows_of([0.5, -3], [2, 0.25])
    assert evaluate(rows, kind="regression")["mae"] == (1.5 + 3.25) / 2
    for failure in failures(rows._replace(labels=with_last(rows.labels, np.inf)), kind="regression"):
        assert isinstance(failure, DataError)
        assert "'click': 1 of 2 evaluated rows have a value that is infinite" in str(failure)
    for failure in failures(rows._replace(logits=with_last(rows.logits, np.nan)), kind="regression"):
        assert isinstance(failure, FloatingPointError)
        assert "'click': 1 of 2 predicted values are NaN or infinite" in str(failure)


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
def test_batches_whose_shapes_disagree_are_rejected(logits, labels, group):
    evaluation = Evaluation([CLICK], with_group=True)
    with pytest.raises(ValueError, match="expected rows of shape"):
        evaluation.update(np.ones(logits), np.ones(labels), np.ones(3), np.ones(group, np.int64))


def test_batch_without_groups_is_rejected():
    with pytest.raises(ValueError, match="group id"):
        Evaluation([CLICK], with_group=True).update(np.ones((1, 1)), np.ones((1, 1)), np.ones(1), None)

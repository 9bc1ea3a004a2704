"""Slices: their metrics are those of their rows alone, and standard errors agree with loops over rows and pairs."""

import csv
import io
import math
import statistics
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.metrics.evaluations import (
    TASK_OF_KIND,
    TestRows,
    cuts,
    evaluate,
    make_rows,
    rows_of,
    small_rows,
)
from tests.trainer.metrics.oracles import (
    auc_over_all_pairs,
    error_of_auc,
    error_of_mean,
    measures_over_all_orders,
    probability_of,
)
from tests.trainer.metrics.workers import LocalWorkers
from trainer.metrics.slices import NULL, REST, SliceColumn
from trainer.slice_table import as_csv
from trainer.tasks.binary import BinaryTask
from trainer.tasks.evaluation import Evaluation, SliceResult

pytestmark = pytest.mark.filterwarnings("error")


def sliced(
    rows: TestRows, columns: dict[str, np.ndarray], *, borders: list[int] | None = None, batch_size: int = 16, **options
) -> list[SliceResult]:
    """The slices of one task, with the rows cut into workers and batches. Fails unless all workers agree."""
    edges = [0, *(borders or []), len(rows.logits)]
    kind = options.pop("kind", "binary")

    def work(comm) -> list[SliceResult]:
        task = TASK_OF_KIND[kind]
        evaluation = Evaluation([task], with_group=True, slices=list(columns), **options)
        first, last = edges[comm.rank : comm.rank + 2]
        for start in range(first, last, batch_size):
            batch = slice(start, min(start + batch_size, last))
            evaluation.update(
                rows.logits[batch].reshape(-1, task.width),
                rows.labels[batch, None],
                rows.weights[batch],
                rows.group[batch],
                [values[batch] for values in columns.values()],
            )
        evaluation.result(comm)
        return evaluation.slices

    results = LocalWorkers(len(edges) - 1).run(work)
    for result in results:
        np.testing.assert_equal(result, results[0])
    return results[0]


def select(rows: TestRows, mask: np.ndarray) -> TestRows:
    return TestRows(*(column[mask] for column in rows))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_each_slice_has_the_metrics_of_its_rows(data):
    rows = data.draw(small_rows())
    count, most = len(rows.logits), data.draw(st.integers(1, 4))
    codes = data.draw(st.lists(st.sampled_from([-3, 0, 1, 2, 70]), min_size=count, max_size=count))
    texts = np.array([None if code == 70 else f"value {code}" for code in codes], object)
    columns = {"code": np.array(codes, np.int64), "text": texts}
    borders, batch_size = data.draw(cuts(count)), data.draw(st.sampled_from([1, 7, 100]))
    results = sliced(
        rows, columns, borders=borders, batch_size=batch_size, slice_values=most, ranking_metrics=("ndcg@2",)
    )
    counted = rows.weights > 0
    frequency = Counter(columns["code"][counted].tolist())
    chosen = sorted(frequency, key=lambda code: (-frequency[code], code))[:most]
    expected = [*map(str, chosen), *([REST] if len(frequency) > most else [])]
    assert [one.value for one in results if one.column == "code"] == expected
    for one in results:
        if one.column == "code":
            is_here = (
                np.isin(columns["code"], chosen, invert=True)
                if one.value == REST
                else codes == np.array(one.value, int)
            )
        elif one.value == REST:
            named = {None if other.value == NULL else other.value for other in results if other.column == "text"}
            is_here = np.array([text not in named for text in texts], bool)
        else:
            is_here = np.array([(text or NULL) == one.value for text in texts], bool)
        mine = select(rows, is_here & counted)
        assert (one.rows, one.positives) == (len(mine.logits), np.count_nonzero(mine.labels == 1))
        alone = evaluate(mine, ranking_metrics=("ndcg@2",))
        assert one.metrics == pytest.approx(alone, rel=1e-12, abs=1e-12, nan_ok=True)
        auc = auc_over_all_pairs(mine.logits, mine.labels, mine.weights)
        assert one.metrics["auc_roc"] == pytest.approx(auc, rel=0, abs=1e-12, nan_ok=True)


def test_values_of_texts_are_the_most_frequent_ones():
    texts = np.array(["b"] * 5 + ["a"] * 4 + ["c"] * 3 + [f"t{i}" for i in range(4)], object)
    rows = make_rows(len(texts), groups=2)._replace(weights=np.ones(len(texts), np.float32))
    for borders in ([], [3], [0, 9]):
        results = sliced(rows, {"text": texts}, borders=borders, slice_values=3)
        assert [(one.value, one.rows) for one in results] == [("b", 5), ("a", 4), ("c", 3), (REST, 4)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0.5, -0.0, 0.0, np.nan, np.nan, np.nan], np.float32), ["nan", "0", "0.5"]),
        (np.array([1.5, -np.inf, 1e-300, -0.25]), ["-inf", "-0.25", "1e-300", "1.5"]),
        (np.array([True, False, True]), ["true", "false"]),
        (np.array([2.5, 1.5, 2.5], np.float16), ["2.5", "1.5"]),
        (np.array([2**64 - 1, 5, 5], np.uint64), ["5", str(2**64 - 1)]),
        (np.array(["(null)", None, None, "zwölf\nzeilen"], object), ["(null)"] * 2 + ["zwölf\nzeilen"]),
        (np.array([None, None], object), ["(null)"]),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_values_of_any_type(values, expected, workers):
    def work(comm):
        column = SliceColumn("x")
        mine = values[comm.rank * len(values) // workers : (comm.rank + 1) * len(values) // workers]
        for value in mine:
            column.append(np.array([value], values.dtype))
        return column.divide(20, comm)

    for division in LocalWorkers(workers).run(work):
        # Texts of equal frequency are in the order of their hashes.
        assert (
            list(division.values) == expected if values.dtype != object else sorted(division.values) == sorted(expected)
        )
        assert len(division.slices) == 0 or division.slices.max() < len(expected)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_standard_errors_agree_with_loops(data):
    rows = data.draw(small_rows(max_rows=25))
    one = sliced(rows, {"all": np.zeros(len(rows.logits))}, borders=data.draw(cuts(len(rows.logits))))
    if not one:
        return
    logits, labels, weights, group = rows.counted
    errors, values = one[0].standard_errors, one[0].metrics
    expected = {"loss_val": error_of_mean(_losses(logits, labels), weights.tolist())}
    if min((labels == 1).sum(), (labels == 0).sum()) > 1:
        expected["auc_roc"] = error_of_auc(logits, labels, weights)
    if (labels == 1).any() and len(logits) > 1:
        residuals = [
            w * (probability_of(x) - values["calibration"] * y)
            for x, y, w in zip(logits.tolist(), labels.tolist(), weights.tolist(), strict=True)
        ]
        count, actual = len(residuals), math.fsum(weights[labels == 1].tolist())
        expected["calibration"] = math.sqrt(math.fsum(r * r for r in residuals) * count / (count - 1)) / actual
    with_both = [(auc_over_all_pairs(logits[here], labels[here], weights[here]), weights[here].sum(dtype=float))
                 for here in (group == name for name in np.unique(group))]  # fmt: skip
    with_both = [(auc, weight) for auc, weight in with_both if not math.isnan(auc)]
    expected["gauc"] = error_of_mean(*map(list, zip(*with_both, strict=True))) if with_both else math.nan
    for key, error in expected.items():
        assert errors[key] == pytest.approx(error, rel=1e-9, abs=1e-12, nan_ok=True), key
    assert math.isnan(errors["pr_auc"])


def _losses(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    signed = np.where(labels == 1, -logits, logits).astype(float).tolist()
    return [max(x, 0) + math.log1p(math.exp(-abs(x))) for x in signed]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_standard_errors_of_ranking_metrics_are_over_groups(data):
    rows = data.draw(small_rows(max_rows=6))
    names = ("ndcg@2", "map@12", "hit_rate@1")
    found = sliced(
        rows, {"all": np.zeros(len(rows.logits))}, ranking_metrics=names, borders=data.draw(cuts(len(rows.logits)))
    )
    for name in names if found else ():
        family, _, ranks = name.partition("@")
        counted = rows.counted
        values = measures_over_all_orders(family, int(ranks), counted.logits, counted.labels, counted.group)
        expected = error_of_mean(values, [1] * len(values))
        assert found[0].standard_errors[name] == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


def test_without_weights_they_are_the_textbook_formulas():
    rows = make_rows(60, groups=8, distinct_scores=12)._replace(weights=np.ones(60, np.float32))
    (one,) = sliced(rows, {"all": np.zeros(60)}, borders=[25])
    positive, negative = (rows.logits[rows.labels == label].tolist() for label in (1, 0))
    above = [statistics.mean((np.sign(p - n) + 1) / 2 for n in negative) for p in positive]
    below = [statistics.mean((np.sign(p - n) + 1) / 2 for p in positive) for n in negative]
    delong = math.sqrt(statistics.variance(above) / len(above) + statistics.variance(below) / len(below))
    assert one.standard_errors["auc_roc"] == pytest.approx(delong, rel=1e-12)
    losses = _losses(rows.logits, rows.labels)
    assert one.standard_errors["loss_val"] == pytest.approx(statistics.stdev(losses) / math.sqrt(60), rel=1e-12)


@pytest.mark.parametrize("kind", ["regression", "multiclass"])
def test_standard_errors_of_other_tasks(kind):
    random = np.random.default_rng(0)
    shape = (50, 3) if kind == "multiclass" else (50,)
    rows = rows_of(random.normal(size=shape), random.integers(0, 3, 50), random.uniform(0.5, 2, 50))
    one, two = sliced(rows, {"side": np.arange(50) % 2}, kind=kind, borders=[0, 30])
    mine = select(rows, np.arange(50) % 2 == 0)
    errors, weights = one.standard_errors, mine.weights.tolist()
    assert (one.positives, one.rows, two.rows) == (None, 25, 25)
    if kind == "multiclass":
        correct = (mine.logits.argmax(axis=1) == mine.labels).astype(float).tolist()
        assert errors["accuracy"] == pytest.approx(error_of_mean(correct, weights), rel=1e-12)
        assert math.isnan(errors["auc_roc"])
        return
    deviations = (mine.logits.astype(float) - mine.labels).tolist()
    squared = error_of_mean([d * d for d in deviations], weights)
    assert errors["loss_val"] == pytest.approx(squared, rel=1e-12)
    assert errors["rmse"] == pytest.approx(squared / 2 / one.metrics["rmse"], rel=1e-12)
    assert errors["mae"] == pytest.approx(error_of_mean([abs(d) for d in deviations], weights), rel=1e-12)


def test_conditional_tasks_and_joint_events_have_slices_of_their_own_rows():
    random = np.random.default_rng(1)
    click = (random.random(200) < 0.5).astype(np.float32)
    labels = np.stack([click, click * (random.random(200) < 0.4)], axis=1)
    evaluation = Evaluation([BinaryTask("click"), BinaryTask("buy", given=0)], with_group=False, slices=["side"])
    side = np.arange(200) % 4
    evaluation.update(random.normal(size=(200, 2)), labels, np.ones(200), None, [side])
    LocalWorkers(1).run(evaluation.result)
    rows = {(one.value, one.task): (one.rows, one.positives) for one in evaluation.slices}
    for value in range(4):
        here = side == value
        clicks, buys = int(click[here].sum()), int(labels[here, 1].sum())
        assert rows[str(value), "click"] == (50, clicks)
        assert rows[str(value), "buy"] == (clicks, buys)
        assert rows[str(value), "click+buy"] == (50, buys)


def test_table_has_a_line_per_slice_and_reads_back_equal():
    rows = make_rows(90, groups=9)
    slices = sliced(rows, {"a, b": np.array(["x", 'y "z"', "x\ny"], object)[np.arange(90) % 3]})
    lines = list(csv.DictReader(io.StringIO(as_csv(slices))))
    assert [(line["column"], line["value"], int(line["rows"])) for line in lines] == [
        (one.column, one.value, one.rows) for one in slices
    ]
    for line, one in zip(lines, slices, strict=True):
        assert float(line["auc_roc"]) == one.metrics["auc_roc"]
        assert float(line["auc_roc_se"]) == one.standard_errors["auc_roc"] and line["pr_auc_se"] == ""

"""NDCG, recall, MRR, hit rate and MAP at k against loops over all orders of tied rows, and by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from tests.trainer.metrics.evaluations import TestRows, cuts, evaluate, make_rows, rows_of, small_rows
from tests.trainer.metrics.oracles import mean, measure, measures_over_all_orders
from tests.trainer.metrics.workers import LocalWorkers
from trainer.cli import make_options
from trainer.metrics.ranking import RANKING_METRICS, ranking_metric
from trainer.metrics.rows import Rows
from trainer.tasks.evaluation import is_better, metric_of

pytestmark = pytest.mark.filterwarnings("error")

CUTOFFS = (1, 2, 3, 5, 40)
NAMES = [f"{family}@{ranks}" for family in RANKING_METRICS for ranks in CUTOFFS]


def at_k(rows: TestRows, *names: str, **how) -> dict[str, float]:
    values = evaluate(rows, ranking_metrics=names, **how)
    return {name: values[name] for name in names}


def of(name: str, logits, labels, group=None) -> float:
    return at_k(rows_of(logits, labels, group=group), name)[name]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_they_are_the_definitions_over_all_orders_of_ties(data):
    rows = data.draw(small_rows(max_rows=6))
    counted = rows.counted
    expected = {
        f"{family}@{ranks}": mean(
            measures_over_all_orders(family, ranks, counted.logits, counted.labels, counted.group)
        )
        for family in RANKING_METRICS
        for ranks in CUTOFFS
    }
    batch_size = data.draw(st.sampled_from([1, 4, None]))
    actual = at_k(rows, *NAMES, borders=data.draw(cuts(len(rows.logits))), batch_size=batch_size)
    for name in NAMES:
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("distinct_scores", [7, None])
@pytest.mark.parametrize("workers", [1, 3])
def test_groups_without_ties_agree_with_the_definitions(workers, distinct_scores):
    rows = make_rows(600, groups=30)
    counted = rows.counted
    if distinct_scores:  # ties at which all labels are equal do not matter
        counted = counted._replace(logits=np.round(counted.logits * 2) / 2 + counted.labels * np.float32(0.01))
    expected = {}
    for name in NAMES:
        family, _, ranks = name.partition("@")
        values = []
        for group in np.unique(counted.group):
            here = counted.group == group
            ranked = counted.labels[here][np.argsort(-counted.logits[here], kind="stable")].astype(int).tolist()
            values += [measure(family, int(ranks), ranked)] if any(ranked) else []
        expected[name] = mean(values)
    assert at_k(counted, *NAMES, workers=workers) == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_batches_and_workers_change_nothing(workers):
    rows = make_rows(3000, groups=40, distinct_scores=9)
    assert at_k(rows, *NAMES, workers=workers, batch_size=97) == pytest.approx(at_k(rows, *NAMES), rel=0, abs=1e-12)


@pytest.mark.parametrize("family", RANKING_METRICS)
def test_what_workers_do_not_send_does_not_matter(family):
    rows = make_rows(3000, groups=20)
    # One worker has the first 30 rows or so of every group, of which it sends 15.
    rows = TestRows(*(column[np.argsort(-rows.logits)] for column in rows))
    name = f"{family}@15"
    assert at_k(rows, name, workers=4)[name] == pytest.approx(at_k(rows, name)[name], rel=0, abs=1e-12)


@pytest.mark.parametrize("positives", [1, 3, 150, 399])
@pytest.mark.parametrize("ranks", [1, 10, 300, 1000])
def test_a_large_tie_gets_the_exact_expectation(ranks, positives, monkeypatch):
    """One group of 400 tied rows behind two negatives: the first positive by the hypergeometric distribution."""
    monkeypatch.setattr("trainer.metrics.ranking._CELLS", 64)  # several parts
    ties, ahead = 400, 2
    rows = rows_of([1] * ahead + [0] * ties, [0] * ahead + [1] * positives + [0] * (ties - positives))
    counted = min(ties, max(ranks - ahead, 0))
    every = math.comb(ties, positives)
    first = [Fraction(math.comb(ties - place, positives - 1), every) for place in range(1, counted + 1)]
    expected = {
        f"mrr@{ranks}": float(sum(share / (ahead + place) for place, share in enumerate(first, 1))),
        f"hit_rate@{ranks}": float(sum(first)),
        f"recall@{ranks}": counted / ties,
    }
    assert at_k(rows, *expected) == pytest.approx(expected, rel=1e-12, abs=0)


def test_values_by_hand():
    logits, labels = [5, 4, 3, 2, 1], [0, 1, 0, 1, 0]
    ideal = 1 + 1 / math.log2(3)
    assert of("ndcg@3", logits, labels) == pytest.approx(1 / math.log2(3) / ideal, abs=1e-15)
    assert of("ndcg@10", logits, labels) == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / ideal, abs=1e-15)
    assert [of(f"recall@{k}", logits, labels) for k in (1, 2, 4, 9)] == [0, 0.5, 1, 1]
    assert [of(f"mrr@{k}", logits, labels) for k in (1, 2, 9)] == [0, 0.5, 0.5]
    assert [of(f"hit_rate@{k}", logits, labels) for k in (1, 2)] == [0, 1]
    assert of("map@4", logits, labels) == pytest.approx((1 / 2 + 2 / 4) / 2, abs=1e-15)
    assert of("ndcg@1", [0, 0], [1, 0]) == of("mrr@1", [0, 0], [1, 0]) == of("hit_rate@1", [0, 0], [1, 0]) == 0.5


@pytest.mark.parametrize("family", RANKING_METRICS)
def test_groups_without_a_positive_are_left_out(family):
    assert of(f"{family}@1", [2, 1, 2, 1], [1, 0, 0, 0], [5, 5, 6, 6]) == 1
    assert math.isnan(of(f"{family}@2", [2, 1], [0, 0]))
    assert math.isnan(of(f"{family}@2", [], []))


@pytest.mark.parametrize("family", RANKING_METRICS)
def test_of_the_weights_only_0_matters(family):
    rows = rows_of([3, 2, 1], [0, 1, 0], weights=[9, 0.5, 3])
    name = f"{family}@1"
    assert at_k(rows, name) == {name: 0}
    assert at_k(rows._replace(weights=np.array([0, 0.5, 3], np.float32)), name) == {name: 1}


def test_map_at_12_is_the_metric_of_the_public_recipe():
    values = evaluate(make_rows(900, groups=30, distinct_scores=20), ranking_metrics=("map@12",))
    assert values["map@12"] == values["streaming_map_val"]


def test_large_group_is_not_sent_whole():
    rows = make_rows(20_000, groups=3, positives=0.5).counted

    def work(comm):
        part = slice(comm.rank * len(rows.logits) // comm.size, (comm.rank + 1) * len(rows.logits) // comm.size)
        ranking_metric("ndcg@7").result(Rows(*(column[part] for column in rows)), comm)
        return comm.largest_receipt

    assert max(LocalWorkers(4).run(work)) <= 3 * (7 + 1) * 4


@pytest.mark.parametrize(
    "name", ["ndcg@0", "ndcg@-1", "ndcg@1.5", "ndcg@", "ndcg", "ndgc@5", "recall@07", "mrr@1000000", "@3", "ndcg@3/x"]
)
def test_other_names_are_rejected_by_the_flag(name):
    with pytest.raises(DataError, match=r"--ranking_metrics: .* is not a ranking metric; expected NAME@K"):
        make_options({"ranking_metrics": (name,)})


def test_larger_is_better_under_every_logged_key():
    assert is_better("ndcg@10/click+buy", 0.5, 0.4) and not is_better("mrr@3", 0.3, 0.3)
    assert (metric_of("hit_rate@5/mean").title, metric_of("hit_rate@5").name) == ("Hit rate@5", "hit_rate@5")
    with pytest.raises(ValueError, match="ndcg@0"):
        metric_of("ndcg@0")

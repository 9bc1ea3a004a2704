import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.metrics.evaluations import TestRows, cuts, evaluate, make_rows, rows_of, small_rows
from tests.trainer.metrics.oracles import mean_error

pytestmark = pytest.mark.filterwarnings("error")


def errors(rows: TestRows, **how) -> dict[str, float]:
    return evaluate(rows, kind="regression", **how)


def exact(rows: TestRows) -> dict[str, float]:
    squared, absolute = (mean_error(*rows.counted[:3], power) for power in (2, 1))
    return {"loss_val": squared, "rmse": math.sqrt(squared), "mae": absolute}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_they_are_means_over_rows_however_they_are_spread(data):
    rows = data.draw(small_rows(kind="regression"))
    batch_size = data.draw(st.sampled_from([1, 7, None]))
    actual = errors(rows, borders=data.draw(cuts(len(rows.logits))), batch_size=batch_size)
    assert actual == pytest.approx(exact(rows), rel=1e-12, abs=0, nan_ok=True)


@pytest.mark.parametrize("workers", [1, 4])
def test_several_blocks_of_rows(workers):
    rows = make_rows(300_000, groups=2)
    rows = rows._replace(labels=np.random.default_rng(1).standard_normal(300_000).astype(np.float32))
    result = errors(rows, workers=workers)
    gaps, weights = np.abs(rows.logits - rows.labels.astype(float)), rows.weights.astype(float)
    for key, power in (("loss_val", 2), ("mae", 1)):
        expected = math.fsum((weights * gaps**power).tolist()) / math.fsum(weights.tolist())
        assert result[key] == pytest.approx(expected, rel=1e-12)


def test_a_weight_of_3_is_three_rows_and_one_of_0_is_none():
    assert errors(rows_of([1, 0, 9], [0, 5, 0], [3, 1, 0])) == errors(rows_of([1, 1, 1, 0], [0, 0, 0, 5]))


def test_the_largest_float32_values_do_not_overflow():
    largest = np.finfo(np.float32).max
    result = errors(rows_of([largest], [-largest]))
    assert result["mae"] == result["rmse"] == 2 * float(largest)


def test_values_that_float32_can_hardly_tell_apart_are():
    assert errors(rows_of([1 + 2**-23], [1]))["mae"] == 2**-23
    assert errors(rows_of([2**24], [1]))["mae"] == 2**24 - 1  # not a float32


def test_they_are_nan_without_a_row():
    assert all(map(math.isnan, errors(rows_of([], []), workers=2).values()))
    assert all(map(math.isnan, errors(rows_of([1], [1], [0])).values()))

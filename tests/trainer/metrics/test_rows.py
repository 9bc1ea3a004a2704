import numpy as np
import pytest

from trainer.metrics.rows import GrowingArray, RowStore


@pytest.mark.parametrize("width", [None, 1, 3])
def test_appended_rows_stay_in_order_through_every_growth(width):
    shape = () if width is None else (width,)
    whole = np.random.default_rng(0).random((5000, *shape)).astype(np.float32)
    array = GrowingArray(np.float32, width)
    start = 0
    for size in [0, 1, 700, 324, 1, 2000, 0, 1974]:
        array.append(whole[start : start + size])
        start += size
        np.testing.assert_array_equal(array.rows, whole[:start])
        assert len(array) == start


def test_a_store_gives_each_task_its_columns_of_the_rows_that_count():
    store = RowStore(2, with_group=True)
    for start in range(0, 3000, 600):
        weights = np.arange(start, start + 600) % 3
        logits = np.stack([weights, -weights], axis=1)
        store.append(logits, logits > 0, weights, np.arange(start, start + 600))
    rows = store.task(1)
    kept = np.arange(3000)[np.arange(3000) % 3 != 0]
    np.testing.assert_array_equal(rows.group, kept)
    np.testing.assert_array_equal(rows.weights, kept % 3)
    np.testing.assert_array_equal(rows.logits, -(kept % 3))
    np.testing.assert_array_equal(rows.labels, np.zeros(2000))
    assert len(store) == 2000
    assert [column.dtype for column in rows] == [np.float32, np.float32, np.float32, np.int64]

import numpy as np
import pytest

from trainer.metrics.rows import GrowingArray
from trainer.tasks.binary import BinaryTask
from trainer.tasks.evaluation import RowStore
from trainer.tasks.multiclass import MulticlassTask


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


def test_store_gives_each_task_its_columns():
    store = RowStore([BinaryTask("click"), BinaryTask("buy")], with_group=True)
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


def test_a_task_of_several_classes_has_that_many_logits():
    store = RowStore([BinaryTask("click"), MulticlassTask("kind", num_classes=3), BinaryTask("buy")], with_group=False)
    logits = np.arange(20, dtype=np.float32).reshape(4, 5)
    labels = np.arange(12, dtype=np.float32).reshape(4, 3)
    store.append(logits, labels, np.ones(4), None)
    for index, columns in enumerate((0, slice(1, 4), 4)):
        rows = store.task(index)
        np.testing.assert_array_equal(rows.logits, logits[:, columns])
        np.testing.assert_array_equal(rows.labels, labels[:, index])

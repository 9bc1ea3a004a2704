import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics.sorting import number_groups

NEAR = st.integers(-3, 3)
FAR = st.one_of(NEAR, st.integers(-(2**63), 2**63 - 1))


@given(st.one_of(st.lists(NEAR, max_size=30), st.lists(FAR, max_size=30)))
def test_groups_are_numbered_by_increasing_id(ids):
    group = np.array(ids, np.int64)
    order, names, numbers = number_groups(group)
    assert sorted(order.tolist()) == list(range(len(ids)))
    assert names.tolist() == sorted(set(ids))
    assert [names[number] for number in numbers] == group[order].tolist() == sorted(ids)
    assert (order.dtype, names.dtype, numbers.dtype) == (np.int64, np.int64, np.uint64)

"""Ids out of range in an export: those of unseen values, or an error."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.export.graph import matrices
from trainer.layout import CategoricalInput, InputSchema

IDS = {
    "user": [[0], [4], [5], [-1], [2**31 - 1], [-(2**31)]],
    "tags": [[0, -1], [6, 7], [-5, 8], [7, 7], [1, 2], [3, 4]],
}


@pytest.mark.parametrize("unseen", [None, 2])
def test_ids_out_of_range(unseen):
    layout = InputSchema(
        (
            CategoricalInput("user", 0, 1, False, 5, 3, unseen_id=unseen),
            CategoricalInput("tags", 1, 2, True, 7, 3, unseen_id=unseen),
        ),
        (),
    )
    ids, numerical, *_ = matrices(layout, {name: tf.constant(values, tf.int32) for name, values in IDS.items()})
    users, tags = np.array(IDS["user"]), np.array(IDS["tags"])
    if unseen is None:
        expected = [np.where(users < 0, 5, users), tags]  # the lookup fails on 5
    else:
        expected = [np.where((users < 0) | (users > 4), 2, users), np.where(tags > 6, 2, tags)]
    assert ids.numpy().tolist() == np.concatenate(expected, axis=1).tolist()
    assert numerical.shape == (6, 0)

import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.small_models import make_batches, make_model, make_step, run
from tests.trainer.test_regularization import step_context
from trainer.layout import RowValues
from trainer.models.aitm import attend, chain_of
from trainer.models.layers import Dense, DenseConfig
from trainer.tasks.binary import BinaryTask

CLICK, CART, BUY = BinaryTask("click"), BinaryTask("cart"), BinaryTask("buy")


def test_chain_follows_given_then_order():
    assert chain_of((CLICK, CART, BUY)) == [(0, None), (1, 0), (2, 1)]
    given_later = (BinaryTask("buy", given=1), CLICK, BinaryTask("return", given=0), CART)
    assert chain_of(given_later) == [(1, None), (3, 1), (0, 1), (2, 0)]


def test_attention_equals_the_paper():
    projections = Dense(4, DenseConfig(), stacks=3, name="attention")
    rng = np.random.default_rng(0)
    own, handed = (rng.normal(size=(5, 4)).astype(np.float32) for _ in range(2))
    found = attend(tf.constant(own), tf.constant(handed), projections).numpy()
    value, key, query = projections.kernel.numpy()
    for row in range(5):
        vectors = (handed[row], own[row])
        scores = np.array([(u @ key) @ (u @ query) / 2 for u in vectors])
        weights = np.exp(scores) / np.exp(scores).sum()
        expected = sum(weight * (u @ value) for weight, u in zip(weights, vectors, strict=True))
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("tasks", "penalized"), [((CLICK, BUY), True), ((CLICK, BinaryTask("buy", given=0)), False)])
def test_calibrator_penalizes_likelier_later_tasks(tasks, penalized):
    model, batch = make_model(model="aitm", tasks=tasks), make_batches(1, tasks=2)[0]
    context = step_context(16)
    logits = (
        model.logits(model.embeddings.pool_padded(batch.ids), RowValues(batch.numerical), context)
        .numpy()
        .astype(np.float64)
    )
    p = 1 / (1 + np.exp(-logits))
    expected = 0.6 * np.maximum(p[:, 1] - p[:, 0], 0)
    assert expected.max() > 0
    if penalized:
        np.testing.assert_allclose(context.penalties[0], expected, rtol=1e-4, atol=1e-7)
    else:
        assert not context.penalties


def test_calibrator_makes_later_tasks_less_likely():
    gaps = {}
    for weight in (0.0, 5.0):
        model = make_model(model="aitm", tasks=(CLICK, BUY), calibrator_weight=weight)
        step = make_step(model)
        batches = make_batches(30, tasks=2)
        for number, batch in enumerate(batches, start=1):
            run(step, batch, number)
        p = tf.sigmoid(model(batches[0].ids, batches[0].numerical)).numpy()
        gaps[weight] = np.maximum(p[:, 1] - p[:, 0], 0).mean()
    assert gaps[5.0] < 0.5 * gaps[0.0]

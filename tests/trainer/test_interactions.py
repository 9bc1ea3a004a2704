"""Interactions between the embeddings and the network, against plain loops over features."""

from itertools import combinations

import numpy as np
import pytest
import tensorflow as tf

from data.errors import DataError
from tests.helpers import left_to_all
from tests.trainer.local_workers import run_workers
from tests.trainer.small_models import LAYOUT, differences, make_batches, make_model, make_step, part, run, run_eagerly
from trainer.embeddings.shards import Shards
from trainer.layout import CategoricalInput, InputSchema
from trainer.models import model_options
from trainer.models.ranking import RankingModel

SETTINGS = {
    "cross": {"interaction": "cross", "cross_layers": 2},
    "low_rank_cross": {"interaction": "cross", "cross_rank": 3},
    "dot": {"interaction": "dot", "numerical_hidden_units": (5,)},
    "fm": {"interaction": "fm"},
}
EQUAL_WIDTHS = InputSchema(
    (CategoricalInput("user", 0, 1, False, 50, 4), CategoricalInput("tags", 1, 3, True, 9, 4)), ("age",)
)
ONLY_IDS = InputSchema(LAYOUT.categorical, ())


def weights_of(model: RankingModel) -> dict[str, tf.Tensor]:
    return {path.split("/interaction/")[-1]: weight for path, weight in model.weights_by_name.items()}


def fields_of(model: RankingModel, deep: list[tf.Tensor]) -> list[tf.Tensor]:
    """The embedding of each feature, [batch, widest], projected by its own matrix if it is narrower."""
    fields, weights, widest = [], weights_of(model), model.layout.widest
    for number, pooled in enumerate(deep):
        for feature in range(pooled.shape[1]):
            vector = pooled[:, feature]
            if vector.shape[1] < widest:
                vector @= weights[f"projections/group_{number}/kernel"][feature]
            fields.append(vector)
    return fields


def by_loops(model: RankingModel, deep: list[tf.Tensor], numerical: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The network's input and the term of the logits of one output, as the papers write them."""
    options, weights = model.network.options, weights_of(model)
    first = tf.concat([*(pooled[:, f] for pooled in deep for f in range(pooled.shape[1])), numerical], axis=1)
    none = tf.zeros((len(first), 1))
    if options.interaction == "cross":
        x = first
        for layer in range(1, options.cross_layers + 1):
            below = x @ weights[f"down_{layer}/kernel"] if options.cross_rank else x
            x = first * (below @ weights[f"across_{layer}/kernel"] + weights[f"across_{layer}/bias"]) + x
        return x, none
    fields = fields_of(model, deep)
    if options.interaction == "dot":
        alone = []
        if numerical.shape[1]:
            hidden = tf.nn.relu(numerical @ weights["numerical/layer_1/kernel"] + weights["numerical/layer_1/bias"])
            alone = [tf.nn.relu(hidden @ weights["numerical/layer_2/kernel"] + weights["numerical/layer_2/bias"])]
        vectors = [*alone, *fields]
        pairs = [tf.reduce_sum(vectors[i] * vectors[j], axis=1) for i in range(len(vectors)) for j in range(i)]
        return tf.concat([*alone, tf.stack(pairs, axis=1)], axis=1), none
    if numerical.shape[1]:
        fields += [numerical[:, n, None] * weights["numerical/kernel"][n] for n in range(numerical.shape[1])]
    return first, tf.add_n([one * other for one, other in combinations(fields, 2)]) @ weights["factors"]


@pytest.mark.parametrize("layout", [LAYOUT, EQUAL_WIDTHS, ONLY_IDS])
@pytest.mark.parametrize("name", SETTINGS)
def test_values_and_gradients_equal_loops_over_features(name, layout):
    model, rng = make_model(layout=layout, **SETTINGS[name]), np.random.default_rng(2)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) * 0.5)
    groups = model.embeddings.deep_groups
    deep = [tf.constant(rng.normal(size=(6, len(group.features), group.width)), tf.float32) for group in groups]
    numerical = tf.constant(rng.normal(size=(6, len(layout.numerical))), tf.float32)
    weights = [variable.value for variable in model.interaction.trainable_variables]
    inputs = [*deep, numerical, *weights]
    factors = tf.constant(rng.normal(size=(1, model.network.options.network_width(layout))), tf.float32)
    results = []
    for compute in (lambda: model.interaction(deep, numerical), lambda: by_loops(model, deep, numerical)):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            x, logits = compute()
            term = tf.add_n(logits) if isinstance(logits, tuple) and logits else tf.zeros((6, 1))
            term = logits if isinstance(logits, tf.Tensor) else term
            total = tf.reduce_sum(x * factors) + 3 * tf.reduce_sum(term)
        gradients = tape.gradient(total, inputs, unconnected_gradients="zero")
        results.append([x, term, *map(tf.convert_to_tensor, gradients)])
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", left_to_all(SETTINGS, ("dot",)))
def test_several_workers_with_shards_equal_one(name):
    batches = make_batches(8, tasks=2)
    tasks = ("click", "buy")
    alone = make_model(model="mmoe", tasks=tasks, **SETTINGS[name])
    step = make_step(alone)
    losses = [run(step, batch, number) for number, batch in enumerate(batches, start=1)]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])

    def work(comm):
        shards = Shards(comm.rank, comm.size, comm.exchange_values, smallest=50)
        model = make_model(model="mmoe", tasks=tasks, shards=shards, **SETTINGS[name])
        own = make_step(model, comm=comm)
        halves = [part(batch, slice(8 * comm.rank, 8 * comm.rank + 8)) for batch in batches]
        found = [run_eagerly(own, half, number).losses.numpy() for number, half in enumerate(halves, start=1)]
        return found, {
            path: weight.numpy() for path, weight in model.weights_by_name.items() if "embeddings" not in path
        }

    for found, weights in run_workers(2, work):
        np.testing.assert_allclose(found, losses, rtol=1e-4)
        for path, value in weights.items():
            np.testing.assert_allclose(value, alone.weights_by_name[path].numpy(), atol=1e-4, err_msg=path)


@pytest.mark.parametrize("name", left_to_all(SETTINGS, ("dot",)))
def test_the_step_compiles_to_the_same(name):
    models = [make_model(**SETTINGS[name]) for _ in range(2)]
    for model, xla in zip(models, (False, True), strict=True):
        step = make_step(model, xla=xla)
        for number, batch in enumerate(make_batches(3), start=1):
            run(step, batch, number)
    assert differences(*models) < 1e-5


def test_interactions_of_ids_need_ids():
    numbers = InputSchema((), ("age",))
    for name in ("dot", "fm"):
        with pytest.raises(DataError, match=f"--interaction {name} needs categorical features, and there are none"):
            model_options(interaction=name).check_layout(numbers)
    model_options(interaction="cross").check_layout(numbers)

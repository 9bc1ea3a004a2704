"""Encoders of behavior sequences, against loops over rows and steps, and the training of models that have some."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.sequences import train_planted
from data.spec.feature_spec import FeatureSpec
from tests.helpers import ROOT, left_to_all
from tests.trainer.local_workers import run_workers
from tests.trainer.small_models import (
    HISTORY,
    Rows,
    differences,
    losses_of,
    make_model,
    make_step,
    numbers_of,
    part,
    run_eagerly,
    share_of,
    unpadded,
)
from trainer.embeddings.shards import Shards
from trainer.evaluate import Forward
from trainer.layout import CategoricalInput, InputSchema, SequenceInput, input_schema
from trainer.models import model_options
from trainer.models.layers import DenseConfig
from trainer.models.sequences import ENCODERS, SequenceEncoder

COMPARED, WIDTH, NUMBERS, LENGTH, ROWS = 4, 7, 2, 5, 6


def encoded_by(encoder: str) -> InputSchema:
    """The layout of HISTORY, all of whose sequences have this encoder."""
    return replace(HISTORY, sequences=tuple(replace(own, encoder=encoder) for own in HISTORY.sequences))


def make_rows(count: int, rows: int = 16, *, layout: InputSchema = HISTORY, seed: int = 0) -> list[Rows]:
    """Rows with histories of any length, some empty, whose clicked items decide the label."""
    rng, batches = np.random.default_rng(seed), []
    for _ in range(count):
        lengths = {own.name: rng.integers(0, own.length + 1, (rows, 1)) for own in layout.sequences}
        columns = []
        for feature in layout.categorical:
            ids = (feature.cardinality * rng.random((rows, feature.hotness)) ** 2).astype(np.int32)
            if feature.multihot:
                own = lengths.get(feature.sequence, rng.integers(0, feature.hotness + 1, (rows, 1)))
                ids[np.arange(feature.hotness) >= own] = -1
            columns.append(ids)
        ids, clicked = np.concatenate(columns, axis=1), layout.named("clicked_item")
        labels = (ids[:, clicked.start : clicked.stop] == ids[:, 1:2]).any(axis=1) | (ids[:, 2] < 10)
        numerical = tf.constant(rng.normal(size=(rows, 1)), tf.float32)
        batches.append(Rows(tf.constant(ids), numerical, tf.constant(labels[:, None], tf.float32), tf.ones(rows)))
    return batches


def make_encoder(name: str, compared: int = COMPARED, numbers: int = NUMBERS, **flags: object) -> SequenceEncoder:
    """An encoder with random weights."""
    small = {"attention_hidden_units": (6, 3), "attention_heads": 3}
    options = model_options(activation="tanh", **(small | flags))
    encoder = ENCODERS[name](compared, WIDTH, numbers, LENGTH, options, DenseConfig("tanh", seed=1), name=name)
    encoder(*inputs(compared, numbers))
    rng = np.random.default_rng(3)
    for variable in encoder.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) * 0.5)
    return encoder


def inputs(compared: int = COMPARED, numbers: int = NUMBERS, seed: int = 0) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Keys, targets, and which steps exist; the first row has none, the second one all."""
    rng = np.random.default_rng(seed)
    lengths = np.array([0, LENGTH, *rng.integers(1, LENGTH + 1, ROWS - 2)])
    keys, target = rng.normal(size=(ROWS, LENGTH, WIDTH + numbers)), rng.normal(size=(ROWS, compared))
    present = np.arange(LENGTH) < lengths[:, np.newaxis]
    return tuple(tf.constant(own, tf.float32) for own in (keys, target, present))


def by_hand(name: str, weights: dict[str, np.ndarray], keys: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The output for one row, in float64: keys [steps, width + numbers] of the steps that exist, target [compared]."""
    compared = len(target)
    if name in ("sum", "mean"):
        return keys.sum(axis=0) / (max(len(keys), 1) if name == "mean" else 1)
    if name == "din":
        total = np.zeros(keys.shape[1])
        for key in keys:
            own, numbers = key[:compared], key[WIDTH:]
            x = np.concatenate([key[:WIDTH], target, own - target, own * target, numbers])
            x = np.tanh(x @ weights["kernel"] + weights["bias"])
            x = np.tanh(x @ weights["hidden/layer_1/kernel"] + weights["hidden/layer_1/bias"])
            total += (x @ weights["score/kernel"] + weights["score/bias"]) * key
        return total
    # The whole block of a Transformer, with all tokens, of which the first one's output is used.
    own = np.concatenate([target, np.zeros(WIDTH - compared)])
    added = keys[:, WIDTH:] @ weights["numbers_kernel"] if "numbers_kernel" in weights else 0
    tokens = np.concatenate([own[np.newaxis], keys[:, :WIDTH] + added]) + weights["positions"][: 1 + len(keys)]
    attended, seen = np.zeros_like(tokens), []
    for head in range(weights["query_kernel"].shape[1]):
        q, k, v = (tokens @ weights[f"{part}_kernel"][:, head] for part in ("query", "key", "value"))
        scores = q @ k.T / np.sqrt(k.shape[1])
        attention = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        attended += attention @ v @ weights["output_kernel"][head]
        seen.append(attention[0, 1:])

    def norm(x: np.ndarray, number: int) -> np.ndarray:
        x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        return x * weights[f"norm_{number}/gamma"] + weights[f"norm_{number}/beta"]

    x = norm(tokens + attended, 1)
    hidden = np.tanh(x @ weights["wide/kernel"] + weights["wide/bias"])
    x = norm(x + hidden @ weights["narrow/kernel"] + weights["narrow/bias"], 2)
    return np.concatenate([x[0], np.mean(seen, axis=0) @ keys[:, WIDTH:]])


def loop_over_rows(encoder: SequenceEncoder, values: list[np.ndarray], keys, target, present) -> np.ndarray:
    """The output of an encoder for all rows, given the values of its weights."""
    paths = [variable.path.split("/", 1)[1] for variable in encoder.trainable_variables]
    weights = dict(zip(paths, values, strict=True))
    rows = zip(keys, target, present, strict=True)
    return np.stack([by_hand(encoder.name, weights, row[there > 0], own) for row, own, there in rows])


@pytest.mark.parametrize(("compared", "numbers"), [(COMPARED, NUMBERS), (WIDTH, 0), (3, 1)])
@pytest.mark.parametrize("name", ENCODERS)
def test_values_and_gradients_equal_loops_over_steps(name, compared, numbers):
    """Gradients in random directions, against differences of the loops in float64."""
    encoder, rng = make_encoder(name, compared, numbers), np.random.default_rng(5)
    keys, target, present = inputs(compared, numbers)
    weights = [variable.value for variable in encoder.trainable_variables]
    factors = rng.normal(size=(ROWS, WIDTH + numbers))
    with tf.GradientTape() as tape:
        tape.watch([keys, target, *weights])
        found = encoder(keys, target, present)
        total = tf.reduce_sum(found * tf.constant(factors, tf.float32))
    gradients = tape.gradient(total, [keys, target, *weights], unconnected_gradients="zero")
    gradients = [tf.convert_to_tensor(own).numpy().astype(float) for own in gradients]
    at = [own.numpy().astype(float) for own in (keys, target, *weights)]

    def loops(values: list[np.ndarray]) -> np.ndarray:
        return loop_over_rows(encoder, values[2:], values[0], values[1], present.numpy())

    np.testing.assert_allclose(found, loops(at), rtol=1e-5, atol=1e-5)
    for index, own in enumerate(gradients):  # every input and weight by itself
        for _ in range(3):
            direction, step = rng.normal(size=own.shape), 1e-5
            ends = []
            for sign in (1, -1):
                moved = [value + sign * step * direction if i == index else value for i, value in enumerate(at)]
                ends.append((loops(moved) * factors).sum())
            expected = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose((own * direction).sum(), expected, rtol=1e-5, atol=1e-5 * np.abs(own).sum())


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_has_no_effect(name):
    encoder, (keys, target, present) = make_encoder(name), inputs()
    noise = tf.random.stateless_normal(keys.shape, (1, 2)) * 100
    other = tf.where(present[:, :, tf.newaxis] > 0, keys, noise)
    np.testing.assert_array_equal(encoder(other, target, present), encoder(keys, target, present))
    with tf.GradientTape() as tape:
        tape.watch([other, target])
        total = tf.reduce_sum(encoder(other, target, present) ** 2)
    of_keys = tape.gradient(total, other).numpy()
    assert not of_keys[present.numpy() == 0].any() and of_keys[present.numpy() > 0].any()


def test_empty_histories_are_zero_without_attention_over_the_target():
    for name in ENCODERS:
        keys, target, present = inputs()
        found = make_encoder(name)(keys, target, present).numpy()
        assert np.isfinite(found).all()
        assert found[0, :WIDTH].any() == (name == "self_attention") and not found[0, WIDTH:].any()


def test_weights_of_din_are_not_normalized():
    """Twice the same step counts twice."""
    encoder, (keys, target, _) = make_encoder("din"), inputs()
    keys = tf.repeat(keys[:, :1], LENGTH, axis=1)
    once, thrice = (encoder(keys, target, tf.cast(tf.range(LENGTH) < n, tf.float32)[tf.newaxis]) for n in (1, 3))
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-5)


def test_positions_count_from_the_newest_step():
    """A history that begins with its newest step and one that ends with it are the same."""
    first, last = (
        InputSchema(
            (
                CategoricalInput("item", 0, 1, False, 20, 4),
                CategoricalInput("clicked", 1, 4, True, 20, 4, "item", sequence="clicks"),
            ),
            (),
            (SequenceInput("clicks", 4, "self_attention", ("clicked",), ("age",), ("item",), newest_first),),
        )
        for newest_first in (True, False)
    )
    ids = np.int32([[3, 1, 2, 3, -1], [3, 9, 8, 7, 6], [2, -1, -1, -1, -1], [5, 4, -1, -1, -1]])
    turned = ids.copy()
    for row in turned:
        count = (row[1:] >= 0).sum()
        row[1 : 1 + count] = row[1 : 1 + count][::-1].copy()
    models = [make_model(layout=layout, embedding_init_std=1.0) for layout in (first, last)]
    rng = np.random.default_rng(0)
    for variables in zip(*(model.trainable_variables for model in models), strict=True):
        value = rng.normal(size=variables[0].shape)
        for variable in variables:
            variable.assign(value)
    logits = []
    for model, own in zip(models, (ids, turned), strict=True):
        batch = Rows(tf.constant(own), tf.zeros((4, 0)), tf.zeros((4, 1)), tf.ones(4))
        logits.append(model(*batch.padded(model.layout)).numpy())
    np.testing.assert_allclose(*logits, rtol=1e-5)
    # In the wrong order, they are not.
    batch = Rows(tf.constant(turned), tf.zeros((4, 0)), tf.zeros((4, 1)), tf.ones(4))
    assert np.abs(models[0](*batch.padded(first)).numpy() - logits[0])[1] > 1e-3


@pytest.mark.parametrize("name", ENCODERS)
def test_training_evaluation_and_padded_calls_see_the_same(name):
    layout = encoded_by(name)
    model = make_model(layout=layout, embedding_init_std=0.5, model="mmoe")
    [batch] = make_rows(1, layout=layout)
    own = batch.input(model)
    logits = model.logits(model.embed(own.lookups), own.values)
    forward = Forward(model, 16, xla=False)
    np.testing.assert_allclose(forward.run(forward.packing.pack((own.lookups, own.values))), logits, atol=1e-6)
    np.testing.assert_allclose(model(*batch.padded(layout)), logits, atol=1e-6)
    assert logits.numpy().std() > 0.01


def test_numbers_of_padding_have_no_effect_on_padded_calls():
    model, [batch] = make_model(layout=encoded_by("din")), make_rows(1)
    padded = batch.padded(HISTORY)
    ids, places = padded.ids.numpy(), list(HISTORY.sequence_numbers.values())
    clicked = HISTORY.named("clicked_item")
    exists = ids[:, clicked.start : clicked.stop] >= 0
    numbers = padded.numbers.numpy().copy()
    for place in places:
        numbers[:, place][~exists] = np.nan
    changed = padded._replace(numbers=tf.constant(numbers))
    np.testing.assert_array_equal(model(*changed), model(*padded))


def test_steps_hold_what_the_batch_holds():
    """Numbers, and which steps exist, from the newest step on."""
    [batch] = make_rows(1)
    ids = batch.ids.numpy()
    numbers = numbers_of(HISTORY, ids)
    clicks, views = HISTORY.steps(unpadded(HISTORY, ids, np.zeros((16, 0), np.float32), numbers))
    clicked, viewed = HISTORY.named("clicked_item"), HISTORY.named("viewed_item")
    assert clicks.numbers.shape == (16, 5, 2) and views.numbers.shape == (16, 4, 0)
    for row in range(16):
        count = (ids[row, clicked.start : clicked.stop] >= 0).sum()
        np.testing.assert_array_equal(clicks.present[row], np.arange(5) < count)
        age, dwell = (numbers[row, place][:count] for place in HISTORY.sequence_numbers.values())
        np.testing.assert_array_equal(clicks.numbers[row, :count], np.stack([age, dwell], axis=1)[::-1])
        assert not clicks.numbers[row, count:].any()
        assert views.present[row].sum() == (ids[row, viewed.start : viewed.stop] >= 0).sum()


def test_the_interaction_sees_one_vector_per_feature_and_one_number_per_number():
    for interaction in ("none", "cross", "dot", "fm"):
        model = make_model(layout=HISTORY, interaction=interaction, wide_part=True)
        [batch] = make_rows(1)
        own = batch.input(model)
        deep_input = model.deep_input(model.embed(own.lookups), own.values)
        assert deep_input.shape == (16, model.network.options.network_width(HISTORY))
    assert HISTORY.width == 8 + 6 + 6 + 6 + (3 + 6 + 6) + 6 + (1 + 2)
    assert HISTORY.deep_numerical == ("price", "age", "dwell")


def test_the_wide_part_sums_the_weights_of_steps():
    model = make_model(layout=HISTORY)
    [batch] = make_rows(1)
    own, rng = batch.input(model), np.random.default_rng(0)
    for variable in model.embeddings.wide_variables:
        variable.assign(rng.normal(size=variable.shape))
    tables = {name: table.numpy() for name, table in model.embeddings.tables().items()}
    ids, expected = batch.ids.numpy(), np.zeros((16, 1))
    for feature in HISTORY.wide:
        for row in range(16):
            for number in ids[row, feature.start : feature.stop]:
                expected[row] += tables[f"embeddings/wide.{feature.name}"][number] if number >= 0 else 0
    np.testing.assert_allclose(model.embed(own.lookups).wide[0], expected, atol=1e-5)
    assert "embeddings/wide.clicked_item" in tables and "embeddings/wide.clicked_shop" not in tables
    assert model.wide_weights[0].shape == (1, 1)  # the numbers of steps are not in the wide part


@pytest.fixture(scope="module")
def batches() -> list[Rows]:
    return make_rows(8)


@pytest.mark.parametrize("name", left_to_all(ENCODERS, ("mean", "din")))
def test_training_lowers_the_loss(name, batches):
    layout = encoded_by(name)
    losses = losses_of(make_model(layout=layout), [batches[0]] * 12)
    assert losses[-1] < 0.7 * losses[0]


def test_gradients_of_a_step_are_those_of_whole_tables(batches):
    """A step's gradients of looked-up rows, against TensorFlow's of all rows from padded ids."""
    for name in ("din", "self_attention"):
        model = make_model(layout=encoded_by(name), embedding_init_std=0.5)
        step, batch = make_step(model, table_exchange="whole"), batches[0]
        found = step.forward_backward(batch.input(model), tf.constant(1), tf.constant([16.0, 16.0])).by_name
        variables = {variable.path: variable.value for variable in model.trainable_variables}
        with tf.GradientTape() as tape:
            logits = model(*batch.padded(model.layout))
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(batch.labels, logits))
        expected = tape.gradient(loss, variables)
        for path, own in found.items():
            dense = tf.zeros_like(variables[path]) + tf.convert_to_tensor(own)
            np.testing.assert_allclose(dense, tf.convert_to_tensor(expected[path]), atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", left_to_all(("din", "self_attention"), ("din",)))
@pytest.mark.parametrize("exchange", left_to_all(("whole", "rows", "sharded"), ("sharded",)))
def test_three_workers_equal_one(name, exchange, batches):
    """Also batches of two rows, so that one of the workers has none, and no step."""
    layout = encoded_by(name)
    sized = [part(batch, slice(0, rows)) for batch, rows in zip(batches, (16, 2, 2, 16), strict=False)]
    alone = make_model(layout=layout)
    losses = losses_of(alone, sized)
    tables = {name: table.numpy() for name, table in alone.embeddings.tables().items()}

    def work(comm):
        if exchange == "sharded":
            shards = Shards(comm.rank, comm.size, comm.exchange_values, smallest=50)
            model = make_model(layout=layout, shards=shards)
            own = make_step(model, comm=comm)
        else:
            model = make_model(layout=layout)
            own = make_step(model, comm=comm, table_exchange=exchange)
        shares = [share_of(batch, comm.rank, comm.size) for batch in sized]
        return model, [run_eagerly(own, rows, number).losses.numpy() for number, rows in enumerate(shares, start=1)]

    for rank, (model, found) in enumerate(run_workers(3, work)):
        np.testing.assert_allclose(np.ravel(found), losses, rtol=1e-4)
        for path, table in model.embeddings.tables().items():
            expected = tables[path][(rank - table.first) % 3 :: 3] if table.is_sharded else tables[path]
            np.testing.assert_allclose(table.numpy(), expected, atol=1e-4, err_msg=path)
        for variable, other in zip(model.deep_weights, alone.deep_weights, strict=True):
            np.testing.assert_allclose(variable.numpy(), other.numpy(), atol=1e-4, err_msg=variable.path)


@pytest.mark.parametrize("name", left_to_all(ENCODERS, ("din",)))
def test_the_step_compiles_to_the_same(name, batches):
    models = [make_model(layout=encoded_by(name)) for _ in range(2)]
    for model, xla in zip(models, (False, True), strict=True):
        losses_of(model, batches[:3], xla=xla)
    assert differences(*models) < 1e-5


@pytest.mark.parametrize("name", ["din", "self_attention"])
def test_xla_compiles_the_encoders(name):
    """As it does on a GPU: the same values, for fixed shapes."""
    encoder, arguments = make_encoder(name), inputs()
    compiled = tf.function(lambda *own: encoder(*own), jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(*arguments), encoder(*arguments), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("self_attention", "float16"),
        pytest.param("din", "bfloat16", marks=pytest.mark.slow),
        pytest.param("din", "float16", marks=pytest.mark.slow),
        pytest.param("self_attention", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_mixed_precision_is_close_to_float32(name, dtype, batches):
    exact, mixed = (
        make_model(layout=encoded_by(name), compute_dtype=own, embedding_init_std=0.5) for own in ("float32", dtype)
    )
    few = batches[:4]  # over more steps, rounding to eight bits leads some processors elsewhere
    losses = [losses_of(exact, few), losses_of(mixed, few, compute_dtype=dtype)]
    np.testing.assert_allclose(*losses, atol=0.02)
    logits = mixed(*batches[0].padded(mixed.layout))
    assert logits.dtype == tf.float32 and np.isfinite(logits).all()


@pytest.mark.parametrize("has_age", [pytest.param(False, marks=pytest.mark.slow), True])
def test_attention_finds_the_step_that_decides(has_age):
    """Planted rows: a step of the target's topic counts and, with ages, a recent one counts more."""
    sizes = {"train": 12_000, "test": 6_000, "epochs": 5, "has_age": has_age}
    assert train_planted("din", **sizes)["reached"] > 0.85 > 0.7 > train_planted("sum", **sizes)["reached"]


def test_the_layout_is_that_of_the_specification():
    spec = FeatureSpec.read(ROOT / "feature_specs" / "sequence.yaml")
    clicks, views = input_schema(spec, dict.fromkeys((feature.name for feature in spec.categorical), 4)).sequences
    features, targets = ("clicked_item", "clicked_category"), ("item", "category")
    assert clicks == SequenceInput("clicks", 12, "din", features, ("clicked_age",), targets, newest_first=False)
    assert views == SequenceInput("views", 6, "mean", ("viewed_page",), ("seconds_viewed",), newest_first=True)

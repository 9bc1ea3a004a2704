"""Vectors of rows in a model: their normalization and projection by hand, and the training of models that have some."""

import numpy as np
import pytest
import tensorflow as tf

from data.errors import DataError
from tests.helpers import left_to_all
from tests.trainer.local_workers import run_workers
from tests.trainer.small_models import (
    LAYOUT,
    VECTORS,
    Rows,
    differences,
    losses_of,
    make_batches,
    make_model,
    make_step,
    part,
    run_eagerly,
    share_of,
    vectors_of,
)
from trainer.config import ModelOptions
from trainer.evaluate import Forward
from trainer.layout import InputSchema, RowValues, VectorInput
from trainer.models import model_options
from trainer.models.layers import DenseConfig
from trainer.models.vectors import Vectors
from trainer.step import StepInput

ONLY_VECTORS = InputSchema((), (), vectors=(VectorInput("title", 3), VectorInput("image", 5)))
VARIANTS = [("layer", 0), ("layer", 4), ("none", 0), ("none", 4)]


def make_vectors(norm: str, units: int, dtype: str = "float32") -> Vectors:
    """The stage for VECTORS with random weights."""
    options = model_options(vector_norm=norm, vector_units=units)
    stage = Vectors(options, VECTORS, DenseConfig("relu", compute_dtype=dtype, seed=1))
    stage(tf.zeros((1, 8)))
    rng = np.random.default_rng(3)
    for variable in stage.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return stage


def by_hand(stage: Vectors, rows: np.ndarray) -> np.ndarray:
    """The output of the stage in float64, vector by vector."""
    weights = {variable.path.split("/", 1)[1]: variable.numpy().astype(float) for variable in stage.trainable_variables}
    found = []
    for number, x in enumerate((rows[:, :7].astype(float), rows[:, 7:].astype(float)), start=1):
        if f"gamma_{number}" in weights:
            mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
            x = (x - mean) / np.sqrt(variance + 1e-5)
            x = x * weights[f"gamma_{number}"] + weights[f"beta_{number}"]
        if f"units_{number}/kernel" in weights:
            x = x @ weights[f"units_{number}/kernel"] + weights[f"units_{number}/bias"]
        found.append(x)
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize(("norm", "units"), VARIANTS)
def test_values_equal_the_formula(norm, units):
    stage, rows = make_vectors(norm, units), np.random.default_rng(0).normal(2, 30, (9, 8)).astype(np.float32)
    rows[0, :7] = 5  # of no variance
    found = stage(rows)
    assert found.shape == (9, 2 * units or 8) and found.dtype == tf.float32
    np.testing.assert_allclose(found, by_hand(stage, rows), rtol=1e-5, atol=1e-5)
    names = {variable.path.split("/", 1)[1] for variable in stage.trainable_variables}
    norms = {"gamma_1", "beta_1"} if norm == "layer" else set()
    projections = {f"units_{number}/{name}" for number in (1, 2) for name in ("kernel", "bias")} if units else set()
    assert names == norms | projections  # a single number is not normalized


def test_xla_compiles_the_stage():
    """As it does on a GPU: the same values, for fixed shapes."""
    stage, rows = make_vectors("layer", 4), tf.random.stateless_normal((5, 8), [1, 2])
    compiled = tf.function(lambda own: stage(own), jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(rows), stage(rows), atol=1e-5)


def test_mixed_precision_rounds_the_projection_alone():
    rows = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    for units, tolerance in ((0, 1e-5), (4, 0.1)):
        stage = make_vectors("layer", units, "bfloat16")
        found = stage(rows)
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, by_hand(stage, rows), atol=tolerance)


def test_the_deep_part_sees_embeddings_then_numbers_then_vectors():
    model, [batch] = make_model(layout=VECTORS, vector_norm="none", embedding_init_std=0.5), make_batches(1)
    own = batch.input(model)
    x = model.deep_input(model.embed(own.lookups), own.values).numpy()
    assert x.shape[1] == 26 + 2 + 8
    np.testing.assert_array_equal(x[:, 26:28], batch.numerical)
    np.testing.assert_array_equal(x[:, 28:], vectors_of(VECTORS, batch.ids.numpy()))
    assert model.wide_weights[0].shape == (2, 1)  # the wide part does not see vectors


@pytest.mark.parametrize("interaction", ["none", "cross", "dot", "fm"])
@pytest.mark.parametrize("units", [0, 4])
def test_interactions_see_vectors(interaction, units):
    flags = {"interaction": interaction, "vector_units": units, "embedding_init_std": 0.5}
    model, [batch] = make_model(layout=VECTORS, **flags), make_batches(1)
    own = batch.input(model)
    x = model.deep_input(model.embed(own.lookups), own.values)
    assert x.shape[1] == model.network.options.network_width(VECTORS)
    moved = own.values._replace(vectors=own.values.vectors * np.float32([1, -1] * 4))
    assert np.abs(model.deep_input(model.embed(own.lookups), moved) - x).max() > 1e-3


def test_vectors_may_be_the_only_input_of_the_deep_part():
    model = make_model(layout=ONLY_VECTORS)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 8)).astype(np.float32)
    none = np.zeros((6, 0), np.int32), *[np.zeros((6, 0), np.float32)] * 3
    assert model(*none, vectors).shape == (6, 1)
    for interaction in ("dot", "fm"):
        with pytest.raises(DataError, match="needs categorical features"):
            model_options(interaction=interaction).check_layout(ONLY_VECTORS)
    model_options(interaction="cross").check_layout(ONLY_VECTORS)


@pytest.mark.parametrize(("norm", "units"), VARIANTS)
def test_weights_and_widths_are_those_of_the_model(norm, units):
    options = model_options(vector_norm=norm, vector_units=units)
    assert isinstance(options, ModelOptions)
    model = make_model(layout=VECTORS, vector_norm=norm, vector_units=units)
    kernels = [weight for weight in model.vectors.trainable_variables if weight.path.endswith("kernel")]
    assert options.vector_weights(VECTORS) == sum(kernel.shape.num_elements() for kernel in kernels) == 8 * units
    assert options.input_width(VECTORS) == LAYOUT.width + (2 * units or 8)
    assert {weight.path for weight in model.vectors.trainable_variables} <= {own.path for own in model.deep_weights}


@pytest.mark.parametrize("name", ["wide_deep", "mmoe"])
def test_training_evaluation_and_padded_calls_see_the_same(name):
    model, [batch] = make_model(layout=VECTORS, model=name, vector_units=4), make_batches(1)
    own = batch.input(model)
    logits = model.logits(model.embed(own.lookups), own.values)
    forward = Forward(model, len(batch.ids), xla=False)
    np.testing.assert_allclose(forward.run(forward.packing.pack((own.lookups, own.values))), logits, atol=1e-6)
    np.testing.assert_allclose(model(*batch.padded(VECTORS)), logits, atol=1e-6)
    other = model(*batch.padded(VECTORS)._replace(vectors=tf.reverse(own.values.vectors, [0])))
    assert np.abs(other - logits).max() > 1e-3


# Training.


@pytest.fixture(scope="module")
def batches() -> list[Rows]:
    return make_batches(6)


def test_a_label_is_learned_from_vectors_alone():
    rng, model = np.random.default_rng(0), make_model(layout=ONLY_VECTORS, vector_units=8)
    step, losses = make_step(model), []
    for number in range(1, 121):
        vectors = rng.normal(size=(64, 8)).astype(np.float32)
        labels = (vectors[:, 1:2] > vectors[:, 5:6]).astype(np.float32)
        values = RowValues(np.zeros((64, 0), np.float32), vectors=vectors)
        rows = StepInput((), values, labels, np.ones(64, np.float32))
        losses.append(step(step.packing.pack(rows), tf.constant(number)).numpy().item())
    assert np.mean(losses[-20:]) < 0.5  # log(2) without the vectors, as no row occurs twice


def test_gradients_of_a_step_are_tensorflows(batches):
    model = make_model(layout=VECTORS, embedding_init_std=0.5, vector_units=4)
    step, batch = make_step(model, table_exchange="whole"), batches[0]
    rows = float(len(batch.ids))
    total = tf.reduce_sum(batch.weights)
    found = step.forward_backward(batch.input(model), tf.constant(1), tf.stack([total, total])).by_name
    with tf.GradientTape() as tape:
        logits = model(*batch.padded(VECTORS))
        losses = tf.nn.sigmoid_cross_entropy_with_logits(batch.labels, logits)[:, 0]
        loss = tf.reduce_sum(losses * batch.weights) / total
    variables = {variable.path: variable.value for variable in model.vectors.trainable_variables}
    assert len(variables) == 6 and rows > 1
    for path, expected in tape.gradient(loss, variables).items():
        np.testing.assert_allclose(found[path], expected, atol=1e-6, err_msg=path)
        assert np.abs(expected).max() > 1e-4


def test_three_workers_equal_one(batches):
    """Also a batch of two rows, so that one of the workers has none."""
    sized = [part(batch, slice(0, rows)) for batch, rows in zip(batches, (16, 2, 16), strict=False)]
    alone = make_model(layout=VECTORS, vector_units=4)
    losses = losses_of(alone, sized)

    def work(comm):
        model = make_model(layout=VECTORS, vector_units=4)
        own = make_step(model, comm=comm)
        shares = [share_of(batch, comm.rank, comm.size) for batch in sized]
        return model, [run_eagerly(own, rows, number).losses.numpy() for number, rows in enumerate(shares, start=1)]

    for model, found in run_workers(3, work):
        np.testing.assert_allclose(np.ravel(found), losses, rtol=1e-4)
        for variable, other in zip(model.deep_weights, alone.deep_weights, strict=True):
            np.testing.assert_allclose(variable.numpy(), other.numpy(), atol=1e-4, err_msg=variable.path)


def test_the_step_compiles_to_the_same(batches):
    models = [make_model(layout=VECTORS, vector_units=4) for _ in range(2)]
    for model, xla in zip(models, (False, True), strict=True):
        losses_of(model, batches[:3], xla=xla)
    assert differences(*models) < 1e-5


@pytest.mark.parametrize("dtype", left_to_all(["bfloat16", "float16"], ["float16"]))
def test_mixed_precision_is_close_to_float32(dtype, batches):
    flags = {"layout": VECTORS, "embedding_init_std": 0.5, "vector_units": 4}
    exact, mixed = (make_model(compute_dtype=own, **flags) for own in ("float32", dtype))
    losses = [losses_of(exact, batches), losses_of(mixed, batches, compute_dtype=dtype)]
    np.testing.assert_allclose(*losses, atol=0.05)

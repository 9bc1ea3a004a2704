"""Vectors that are looked up by ids, in a model: against lookups in NumPy, and their training."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from data.spec.feature_spec import FeatureSpec
from tests.helpers import left_to_all
from tests.trainer.local_workers import run_workers
from tests.trainer.small_models import (
    LAYOUT,
    WEIGHTED,
    Rows,
    differences,
    losses_of,
    make_batches,
    make_model,
    make_step,
    part,
    run_eagerly,
    share_of,
    weights_of,
)
from trainer.checkpoint.state import TrainState
from trainer.cli import parse
from trainer.comm import SingleWorker
from trainer.embeddings import pretrained
from trainer.embeddings.shards import Shards
from trainer.embeddings.touched_rows import TouchedRows
from trainer.evaluate import Forward
from trainer.layout import InputSchema, PretrainedInput, VectorInput
from trainer.model_size import table_sizes
from trainer.models import model_options
from trainer.models.ranking import RankingModel

# A vector of a feature with a table of its own, of one with a shared table, and of lists whose ids have weights.
LOOKED_UP = replace(
    WEIGHTED,
    vectors=(VectorInput("image", 2),),
    pretrained=(
        PretrainedInput("tag_text", "tags", 5, trained=True),
        PretrainedInput("friend_text", "friends", 3, trained=True),
        PretrainedInput("user_text", "user", 4, dtype="float16"),
        PretrainedInput("tag_image", "tags", 2),
        PretrainedInput("friend_image", "friends", 3),
    ),
)
CARDINALITIES = {"tags": 90, "friends": 500, "user": 500}


def file_of(vector: PretrainedInput, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The ids and vectors of a file that lacks some ids."""
    rng = np.random.default_rng([seed, vector.dimension])
    rows = CARDINALITIES[vector.of]
    ids = rng.permutation(rows)[: rows - 9]
    return ids, rng.normal(size=(len(ids), vector.dimension)).astype(vector.dtype)


def tables_of(layout: InputSchema) -> dict[str, np.ndarray]:
    """The table of each vector, [cardinality, dimension] float32; zeros for ids without a vector."""
    found = {}
    for own in layout.pretrained:
        ids, vectors = file_of(own)
        found[own.name] = np.zeros((CARDINALITIES[own.of], own.dimension), np.float32)
        found[own.name][ids] = vectors
    return found


@pytest.fixture(autouse=True)
def in_files(monkeypatch):
    """`file_of` in place of the files of a specification, in blocks."""

    def blocks(spec, feature):
        ids, vectors = file_of(next(own for own in LOOKED_UP.pretrained if own.name == feature.name))
        return zip(np.array_split(ids, 3), np.array_split(vectors, 3), strict=True)

    monkeypatch.setattr(pretrained, "blocks_by_id", blocks)


def filled(model: RankingModel) -> RankingModel:
    features = [
        SimpleNamespace(name=own.name, of=own.of, trained=own.trained, table_dtype=own.dtype)
        for own in model.layout.pretrained
    ]
    spec: FeatureSpec = SimpleNamespace(pretrained=features)  # type: ignore[assignment]
    lines = list(pretrained.fill_from_files(model.embeddings, spec))
    if model.layout is LOOKED_UP:
        assert lines[0] == "tag_text: vectors for 81 of 90 ids of tags (trained)"
        assert lines[2] == "user_text: vectors for 491 of 500 ids of user (not trained, float16)"
    return model


def make(layout: InputSchema = LOOKED_UP, **flags: object) -> RankingModel:
    return filled(make_model(layout=layout, **flags))


def by_hand(batch: Rows, layout: InputSchema = LOOKED_UP) -> np.ndarray:
    """The vectors that the rows of a batch look up, side by side in float64, row by row."""
    ids, tables, columns = batch.ids.numpy(), tables_of(layout), []
    weights = weights_of(layout, ids)
    for own in layout.pretrained:
        feature, rows = layout.named(own.of), []
        for row, numbers in enumerate(ids[:, feature.start : feature.stop]):
            own_weights = weights[row] if feature.weights else np.ones(len(numbers))
            pairs = [
                (w, tables[own.name][n].astype(float)) for n, w in zip(numbers, own_weights, strict=True) if n >= 0
            ]
            total = sum(w for w, _ in pairs)
            rows.append(sum(w * v for w, v in pairs) / total if total else np.zeros(own.dimension))
        columns.append(np.stack(rows))
    return np.concatenate(columns, axis=1)


# Values.


def test_vectors_are_those_of_the_ids():
    model, [batch] = make(vector_norm="none", embedding_init_std=0.5), make_batches(1)
    own = batch.input(model)
    x = model.deep_input(model.embed(own.lookups), own.values).numpy()
    assert x.shape[1] == model.network.options.network_width(LOOKED_UP) == LOOKED_UP.width + 2 + 17
    np.testing.assert_array_equal(x[:, -19:-17], own.values.vectors)
    expected = by_hand(batch)
    np.testing.assert_allclose(x[:, -17:], expected, atol=1e-5)
    assert (np.abs(expected).max(axis=1) > 0).all() and (expected == 0).any()  # some ids have no vector


@pytest.mark.parametrize(("name", "units"), [("wide_deep", 4), ("mmoe", 0)])
def test_training_evaluation_and_padded_calls_see_the_same(name, units):
    model, [batch] = make(model=name, vector_units=units), make_batches(1)
    own = batch.input(model)
    logits = model.logits(model.embed(own.lookups), own.values)
    forward = Forward(model, len(batch.ids), xla=False)
    np.testing.assert_allclose(forward.run(forward.packing.pack((own.lookups, own.values))), logits, atol=1e-6)
    np.testing.assert_allclose(model(*batch.padded(LOOKED_UP)), logits, atol=1e-6)
    plain = make_model(layout=LOOKED_UP, model=name, vector_units=units)  # without vectors in its tables
    assert np.abs(plain(*batch.padded(LOOKED_UP)) - logits).max() > 1e-3


def test_tables_are_held_as_they_are_stored():
    tables, expected = make().embeddings.vector_tables(), tables_of(LOOKED_UP)
    assert {name: table.dtype.name for name, table in tables.items()} == {
        own.name: own.dtype for own in LOOKED_UP.pretrained
    }
    for name, table in tables.items():
        np.testing.assert_array_equal(table.numpy(), expected[name])


@pytest.mark.parametrize("workers", [2, 3])
def test_shards_hold_the_rows_of_whole_tables(workers):
    expected = tables_of(LOOKED_UP)
    for rank in range(workers):
        shards = Shards(rank, workers, lambda *_: pytest.fail("nothing travels"), smallest=100)
        for name, table in make(shards=shards).embeddings.vector_tables().items():
            assert table.is_sharded == (len(expected[name]) >= 100)
            own = expected[name][rank::workers] if table.is_sharded else expected[name]
            np.testing.assert_array_equal(table.numpy(), own)


@pytest.mark.parametrize("rule", ["adam", "rmsprop", None])
def test_tables_take_what_is_computed(rule):
    flags = ["--optimizer", rule] if rule else ["--evaluate"]
    tables = table_sizes(parse(flags, 1, reads_checkpoint=False), LOOKED_UP, 1)
    found = {size.name: size.bytes for size in tables}
    slots = {"adam": 2, "rmsprop": 1, None: 0}[rule]
    assert found["user_text"] == 500 * 4 * 2 and found["tag_image"] == 90 * 2 * 4
    assert found["tag_text"] >= 90 * 5 * 4 * (1 + slots) and found["tag_text"] < 90 * 5 * 4 * (1.5 + slots)
    assert sum(table.rows * table.width for table in LOOKED_UP.frozen_tables) == 500 * 4 + 90 * 2 + 500 * 3


def test_a_vector_may_be_the_only_use_of_a_feature():
    user = replace(LAYOUT.categorical[0], wide="only")
    layout = InputSchema((user,), (), pretrained=(LOOKED_UP.pretrained[2],))
    model = filled(make_model(layout=layout, wide_part=True, vector_norm="none"))
    ids = np.array([[7], [3]], np.int32)
    assert model.embeddings.deep_groups == () and model(ids, np.zeros((2, 0), np.float32)).shape == (2, 1)
    assert layout.has_numbers and model_options(interaction="cross").input_width(layout) == 4


# Training.


@pytest.fixture(scope="module")
def batches() -> list[Rows]:
    return make_batches(6)


def test_gradients_of_a_step_are_tensorflows(batches):
    model = make(embedding_init_std=0.5, vector_units=4)
    step, batch = make_step(model, table_exchange="whole"), batches[0]
    total = tf.reduce_sum(batch.weights)
    found = step.forward_backward(batch.input(model), tf.constant(1), tf.stack([total, total])).by_name
    assert set(found) == set(step.optimizer.weights) | set(step.optimizer.tables)
    assert {"embeddings/vector.of.tag_text", "embeddings/vector.of.friend_text"} <= set(found)
    assert not {f"embeddings/vector.of.{name}" for name in ("user_text", "tag_image", "friend_image")} & set(found)
    with tf.GradientTape() as tape:
        logits = model(*batch.padded(LOOKED_UP))
        losses = tf.nn.sigmoid_cross_entropy_with_logits(batch.labels, logits)[:, 0]
        loss = tf.reduce_sum(losses * batch.weights) / total
    variables = {own.path: own.value for own in (*model.embeddings.deep_variables, *model.vectors.trainable_variables)}
    for path, expected in tape.gradient(loss, variables).items():
        own, dense = tf.convert_to_tensor(found[path]), tf.convert_to_tensor(expected)
        np.testing.assert_allclose(own, dense, atol=1e-6, err_msg=path)
        assert np.abs(dense).max() > 1e-4


def test_a_step_changes_the_trained_vectors_of_its_ids_alone(batches):
    model, before = make(), tables_of(LOOKED_UP)
    touched = TouchedRows(model.embeddings.groups)
    step = make_step(model)
    for number, batch in enumerate(batches[:3], start=1):
        own = batch.input(model)
        touched.add([found.rows.numpy() for found in own.lookups])
        step(step.packing.pack(own), tf.constant(number))
    marked = touched.of_all_workers(SingleWorker())
    for own in LOOKED_UP.pretrained:
        table, feature = model.embeddings.vector_tables()[own.name], LOOKED_UP.named(own.of)
        after = table.numpy()
        if not own.trained:
            assert after.dtype == own.dtype and after.tobytes() == before[own.name].astype(own.dtype).tobytes()
            assert not len(marked[table.key])
            continue
        ids = np.concatenate([batch.ids[:, feature.start : feature.stop] for batch in batches[:3]])
        seen = np.unique(ids[ids >= 0])
        np.testing.assert_array_equal(marked[table.key], seen)
        changed = np.flatnonzero((after != before[own.name]).any(axis=1))
        assert set(changed) <= set(seen) and len(changed) > 0.8 * len(seen)


def test_differences_hold_no_rows_that_are_not_trained():
    model = make()
    state = TrainState(model.weights_by_name)
    chosen = TouchedRows(model.embeddings.groups).of_all_workers(SingleWorker())
    assert set(chosen) == {table.key for table in state.tables.values()}
    shapes = {source.name: source.shape for source in state.sources(chosen)}
    assert shapes["embeddings/vector.user_text"] == (0, 4)
    whole = {source.name: (source.shape, source.dtype) for source in state.sources()}
    assert whole["embeddings/vector.user_text"] == ((500, 4), np.float16)


@pytest.mark.parametrize("sharded", [pytest.param(False, marks=pytest.mark.slow), True])
def test_three_workers_equal_one(sharded, batches):
    """Also a batch of two rows, so that one of the workers has none."""
    sized = [part(batch, slice(0, rows)) for batch, rows in zip(batches, (16, 2, 16), strict=False)]
    alone = make(vector_units=4)
    losses = losses_of(alone, sized)
    tables = {name: table.numpy() for name, table in alone.embeddings.tables().items()}

    def work(comm):
        shards = Shards(comm.rank, comm.size, comm.exchange_values, smallest=100) if sharded else None
        model = make(vector_units=4, shards=shards)
        own = make_step(model, comm=comm)
        shares = [share_of(batch, comm.rank, comm.size) for batch in sized]
        return model, [run_eagerly(own, rows, number).losses.numpy() for number, rows in enumerate(shares, start=1)]

    for rank, (model, found) in enumerate(run_workers(3, work)):
        np.testing.assert_allclose(np.ravel(found), losses, rtol=1e-4)
        for path, table in model.embeddings.tables().items():
            expected = tables[path][(rank - table.first) % 3 :: 3] if table.is_sharded else tables[path]
            np.testing.assert_allclose(table.numpy(), expected, atol=1e-4, err_msg=path)


def test_the_step_compiles_to_the_same(batches):
    models = [make(vector_units=4) for _ in range(2)]
    for model, xla in zip(models, (False, True), strict=True):
        losses_of(model, batches[:3], xla=xla, batch_rows=16)
    assert differences(*models) < 1e-5


@pytest.mark.parametrize("dtype", left_to_all(["bfloat16", "float16"], ["float16"]))
def test_mixed_precision_is_close_to_float32(dtype, batches):
    flags = {"embedding_init_std": 0.5, "vector_units": 4}
    exact, mixed = (make(compute_dtype=own, **flags) for own in ("float32", dtype))
    losses = [losses_of(exact, batches), losses_of(mixed, batches, compute_dtype=dtype)]
    np.testing.assert_allclose(*losses, atol=0.05)


def test_batch_normalization_keeps_its_moments(batches):
    """Its moving moments are the only other variables without gradients."""
    model = make(batch_norm=True)
    assert {variable.path.rsplit("/", 1)[1] for variable in model.moving_moments} == {"moving_mean", "moving_variance"}
    before = [variable.numpy() for variable in model.moving_moments]
    losses_of(model, batches[:2])
    assert all(np.abs(own.numpy() - old).max() > 0 for own, old in zip(model.moving_moments, before, strict=True))

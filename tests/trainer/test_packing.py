"""Batches in two tensors: they hold every bit of the arrays, in memory that nothing writes to as long as it is read."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loading.batch import Batch
from tests.trainer.small_models import HISTORY, LAYOUT, VECTORS, WEIGHTED, make_model, unpadded
from trainer.evaluate import Forward
from trainer.layout import InputSchema, TrainingOnly
from trainer.packing import Packing
from trainer.step import StepInput, input_spec, step_input
from trainer.tasks.binary import BinaryTask
from trainer.tasks.jrc import JrcTask

DTYPES = {"float32": tf.float32, "int64": tf.int64, "int32": tf.int32}


@st.composite
def specs(draw: st.DrawFn) -> list[tf.TensorSpec]:
    """Types of arrays: first sizes that vary or not, and with which arrays fill whole blocks or not."""
    found = []
    for _ in range(draw(st.integers(0, 8))):
        name = draw(st.sampled_from(["float32", "int64", "int64", "int32"]))
        first = draw(st.sampled_from([0, 1, 3, 8, 16, 160] + [None] * 5 * (name != "int32")))
        more = draw(st.sampled_from([(), (1,), (4,), (0,), (2, 3), (2, 0)]))
        found.append(tf.TensorSpec([first, *more], DTYPES[name]))
    return found


def random_arrays(own: list[tf.TensorSpec], seed: int) -> list[np.ndarray]:
    """Arrays of random bits: as float32, some are NaN."""
    rng, arrays = np.random.default_rng(seed), []
    for spec in own:
        dtype = np.dtype(spec.dtype.as_numpy_dtype)
        shape = [rng.integers(0, 40) if size is None else size for size in spec.shape.as_list()]
        arrays.append(np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape))
    return arrays


def assert_same_bits(found: Any, expected: Any) -> None:
    """Compares nested tensors with nested arrays or tensors."""
    tf.nest.assert_same_structure(found, expected)
    for tensor, array in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        expected_tensor = tf.convert_to_tensor(array)
        assert (tensor.dtype, tensor.shape) == (expected_tensor.dtype, expected_tensor.shape)
        assert tensor.numpy().tobytes() == expected_tensor.numpy().tobytes()


@given(specs(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_bit_comes_out_as_it_went_in(own, seed):
    packing = Packing(own)
    unpack = tf.function(packing.unpack, input_signature=(packing.signature,), autograph=False)
    for number in range(3):
        arrays = random_arrays(own, seed + number)
        packed = packing.pack(arrays)
        assert_same_bits(unpack(packed), arrays)
        assert_same_bits(packing.unpack(packed), arrays)
    assert unpack.experimental_get_tracing_count() == 1
    shapes = [tensor.shape.as_list() for tensor in unpack.get_concrete_function().structured_outputs]
    assert shapes == [spec.shape.as_list() for spec in own]


def test_memory_is_used_again_only_when_no_tensor_is_left_in_it():
    packing = Packing([tf.TensorSpec([32], tf.int64), tf.TensorSpec([None], tf.float32)])
    unpack = tf.function(packing.unpack, input_signature=(packing.signature,), autograph=False)
    arrays = [random_arrays([tf.TensorSpec([32], tf.int64), tf.TensorSpec([50], tf.float32)], n) for n in range(8)]
    # Of the first batch the packed tensors are held, of the others what is cut out of them.
    held = [packing.pack(arrays[0]), *(unpack(packing.pack(own)) for own in arrays[1:])]
    assert_same_bits(unpack(held[0]), arrays[0])
    for found, expected in zip(held[1:], arrays[1:], strict=True):
        assert_same_bits(found, expected)
    memory = [own.words.numpy().ctypes.data for own in (packing.pack(arrays[0]) for _ in range(8))]
    assert len(set(memory)) == 1


def test_other_types_are_rejected():
    packing = Packing((tf.TensorSpec([None, 2], tf.float32), tf.TensorSpec([3], tf.int64)))
    for first, second, text in (
        (np.zeros((4, 2)), np.zeros(3, np.int64), r"array 0 .* float32 \(None, 2\), got float64 \(4, 2\)"),
        (np.zeros((4, 1), np.float32), np.zeros(3, np.int64), r"array 0 .* got float32 \(4, 1\)"),
        (np.zeros((4, 2), np.float32), np.zeros(1, np.int64), r"array 1 .* int64 \(3,\), got int64 \(1,\)"),
        (np.zeros((4, 2), np.float32), np.zeros(3, np.int32), r"array 1 .* got int32 \(3,\)"),
    ):
        with pytest.raises(ValueError, match=text):
            packing.pack((first, second))


# Batches of training and evaluation, against a conversion of every array by itself.

SERVED = TrainingOnly(("position", "seconds"), (10,), (0, 1.5))
MODELS = {
    "lists": (LAYOUT, (BinaryTask("click"), BinaryTask("buy", given=0))),
    "weights": (WEIGHTED, (JrcTask("click"),)),
    "sequences": (HISTORY, (BinaryTask("click"),)),
    "vectors": (VECTORS, (BinaryTask("click"), JrcTask("buy"))),
    "training only": (replace(LAYOUT, training_only=SERVED), (BinaryTask("click"),)),
}


def random_batch(layout: InputSchema, tasks: int, rows: int, seed: int) -> Batch:
    """A batch with empty lists, missing labels, weights of 0 and padding at its end."""
    rng = np.random.default_rng(seed)
    ids = np.concatenate(
        [
            np.where(
                feature.multihot & (np.arange(feature.hotness) >= rng.integers(0, feature.hotness + 1, (rows, 1))),
                -1,
                (feature.cardinality * rng.random((rows, feature.hotness)) ** 3).astype(np.int32),
            )
            for feature in layout.categorical
        ],
        axis=1,
    ).astype(np.int32)
    for sequence in layout.sequences:  # whose features have equally many steps
        present = ids[:, [layout.named(sequence.features[0]).start + step for step in range(sequence.length)]] >= 0
        for feature in map(layout.named, sequence.features):
            own = ids[:, feature.start : feature.stop]
            own[...] = np.where(present, np.maximum(own, 0), -1)
    weights = rng.random((rows, layout.weight_columns)).astype(np.float32)
    columns = sum(place.stop - place.start for place in layout.sequence_numbers.values())
    numbers = rng.normal(size=(rows, columns)).astype(np.float32)
    own = unpadded(layout, ids, weights, numbers)
    padding = np.arange(rows) >= rows - rng.integers(0, 3)
    return Batch(
        *own,
        numerical=rng.normal(size=(rows, len(layout.numerical))).astype(np.float32),
        vectors=rng.normal(size=(rows, layout.vector_columns)).astype(np.float32),
        labels=np.where(rng.random((rows, tasks)) < 0.2, np.nan, rng.integers(0, 2, (rows, tasks))).astype(np.float32),
        weights=np.where(padding | (rng.random(rows) < 0.2), 0, rng.random(rows)).astype(np.float32),
        group=np.sort(rng.integers(0, 6, rows)),
        rows=np.where(padding, -1, np.arange(rows)),
        training_only=rng.random((rows, len(layout.training_only.names))).astype(np.float32),
    )


@pytest.mark.parametrize("name", MODELS)
def test_batches_are_those_of_a_conversion_of_every_array(name):
    layout, tasks = MODELS[name]
    model = make_model(layout=layout, tasks=tasks)
    forward = Forward(model, 13, xla=False)
    for rows in (16, 13, None):
        packing = Packing(input_spec(model, rows))
        unpack = tf.function(packing.unpack, input_signature=(packing.signature,), autograph=False)
        for seed in range(6):
            batch = random_batch(layout, len(tasks), rows or 10 + seed, seed)
            arrays = step_input(batch, model.embeddings.lookups(batch.ids), layout.row_values(batch), tasks)
            converted = tf.nest.map_structure(tf.convert_to_tensor, arrays)
            found = unpack(packing.pack(arrays))
            assert isinstance(found, StepInput)
            assert_same_bits(found, converted)
            if rows == 13:
                logits = model.logits(model.embed(converted.lookups), converted.values)
                packed = forward.packing.pack((arrays.lookups, arrays.values))
                np.testing.assert_allclose(forward.run(packed), logits, atol=1e-5)
        assert unpack.experimental_get_tracing_count() == 1

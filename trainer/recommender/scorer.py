"""Predictions from encoded features, with one compiled forward pass for any number of rows."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd
import tensorflow as tf

from data.encoding.keys import Values, as_keys, as_lists, as_numbers
from data.errors import DataError
from data.loading.batch import PAD
from data.loading.lists import Lists
from trainer.checkpoint.load_model import LoadedModel
from trainer.layout import CategoricalInput, InputSchema, ModelInputs, VectorInput
from trainer.tasks.score import predicted

# Encoded features by name.
Features = Mapping[str, Values] | pd.DataFrame
# Rows per forward pass, which bounds the memory for activations.
ROWS_AT_ONCE = 65_536


class Assembler:
    """Assembles the input matrices of a layout from features.

    Args:
        layout: layout of the inputs of a model, or of one side of a ranking request.
    """

    def __init__(self, layout: InputSchema):
        self._layout = layout

    @property
    def specs(self) -> ModelInputs:
        """The types of the matrices as tensors, for any number of rows."""
        layout = self._layout
        return ModelInputs(
            tf.TensorSpec([None, layout.id_columns], tf.int32),
            tf.TensorSpec([None, len(layout.numerical)], tf.float32),
            tf.TensorSpec([None, layout.weight_columns], tf.float32),
            tf.TensorSpec([None, layout.number_columns], tf.float32),
            tf.TensorSpec([None, layout.vector_columns], tf.float32),
        )

    def matrices(self, features: Features, rows: int) -> ModelInputs:
        """Assemble the model's input matrices from features.

        Columns of features that are not given are 0, so the matrices of disjoint sets of features can be added up.

        Args:
            features: some or all input features of the model by name, each [rows] ids, lists of ids, numbers, or lists
                of as many numbers as a vector has. Ids in lists that have weights come with lists of equally many
                numbers under the name of these, and all features of a sequence come together, with lists of ids or
                numbers that are equally long in each row.
            rows: number of rows.

        Raises:
            DataError: if an id is out of range, a number is not finite, or a list has not the length that it must have.
        """
        layout, lists = self._layout, self._lists(features)
        ids = np.zeros((rows, layout.id_columns), np.int32)
        for columns in layout.categorical:
            if columns.name in lists:
                ids[:, columns.start : columns.stop] = self._padded(columns.name, lists, columns.hotness, PAD)
            elif columns.name in features:
                ids[:, columns.start] = _ids(columns, features[columns.name])
        numerical = np.zeros((rows, len(layout.numerical)), np.float32)
        for index, name in enumerate(layout.numerical):
            if name in features:
                numerical[:, index] = _numbers(name, features[name])
        weights = {columns.weights: places for columns, places in layout.weighted.items()}
        of_lists = (self._joined(own, lists, rows) for own in (weights, layout.sequence_numbers, layout.vector_places))
        return ModelInputs(ids, numerical, *of_lists)

    def _lists(self, features: Features) -> dict[str, Lists]:
        """Return the lists among the features, [rows, 1] each, after checking them."""
        layout = self._layout
        read: dict[str, Callable[[Values], np.ndarray]] = {
            columns.name: partial(_ids, columns) for columns in layout.categorical if columns.multihot
        }
        weights = [columns.weights for columns in layout.weighted]
        read |= {name: partial(_numbers, name) for name in (*weights, *layout.sequence_numbers, *layout.vector_places)}
        lists = {name: _as_lists(name, features[name], own) for name, own in read.items() if name in features}
        for columns in layout.weighted:
            _check_lengths(lists, columns.name, columns.weights, "each id has one weight")
        for sequence in layout.sequences:
            for name in (*sequence.features[1:], *sequence.numbers):
                _check_lengths(lists, sequence.features[0], name, f"they are columns of the sequence {sequence.name!r}")
        for vector in layout.vectors:
            if vector.name in lists:
                _check_dimension(vector, lists[vector.name])
        return lists

    def _joined(self, places: Mapping[str, slice], lists: Mapping[str, Lists], rows: int) -> np.ndarray:
        """Return numbers in lists as a matrix, [rows, width] float32, with each column of lists at its place."""
        matrix = np.zeros((rows, sum(place.stop - place.start for place in places.values())), np.float32)
        for name, place in places.items():
            if name in lists:
                matrix[:, place] = self._padded(name, lists, place.stop - place.start, 0)
        return matrix

    def _padded(self, name: str, lists: Mapping[str, Lists], width: int, padding: int) -> np.ndarray:
        """Return lists as a matrix, [rows, width]; of longer ones the first items, or the newest of a sequence."""
        cut = lists[name].cut([width], keep_last=name in self._layout.newest_last)
        return cut.padded([width], padding)


class Scorer(Assembler):
    """Computes predictions with a trained model.

    Args:
        saved: the model, whose tasks predict one number each.
    """

    def __init__(self, saved: LoadedModel):
        super().__init__(saved.layout)
        self._tasks, self._score = saved.tasks, saved.score
        self._sides = [Assembler(side) for side in saved.layout.sides]
        # The row dimension is None, so that the functions are traced only once.
        self._forward = tf.function(
            lambda inputs: saved.model.call(*inputs), input_signature=[self.specs], autograph=False
        )
        self._rank = tf.function(
            saved.model.rank, input_signature=[side.specs for side in self._sides], autograph=False
        )

    def predict(self, inputs: ModelInputs) -> np.ndarray:
        """Predict for input matrices as returned by `matrices`.

        Returns:
            Predictions [rows, tasks] float64: probabilities of binary tasks, values of the others. If there is a score,
            it is one more column.
        """
        return self._predicted(self._forward, inputs, inputs.numerical)

    def rank(self, request: Features, candidates: Features, rows: int) -> np.ndarray:
        """Predict for the candidates of a request, like `predict` for rows with the features of both.

        Args:
            request: the features of the request, each with one value, as `matrices` takes them.
            candidates: the features of candidates, each with a value for each of them.
            rows: number of candidates.
        """
        once, each = (
            side.matrices(features, number)
            for side, features, number in zip(self._sides, (request, candidates), (1, rows), strict=True)
        )
        joined = np.concatenate([np.repeat(once.numerical, rows, axis=0), each.numerical], axis=1)
        numerical = joined[:, self._layout.numerical_places]
        return self._predicted(partial(self._rank, ModelInputs(*map(tf.constant, once))), each, numerical)

    def _predicted(
        self, forward: Callable[[ModelInputs], tf.Tensor], inputs: ModelInputs, numerical: np.ndarray
    ) -> np.ndarray:
        """Return the predictions of rows, given a function that computes the logits of some of them.

        Args:
            forward: the function.
            inputs: the input matrices of all rows.
            numerical: all numerical features of the rows, [rows, numerical] float32.
        """
        outputs = sum(task.width for task in self._tasks)
        blocks = [np.zeros((0, outputs), np.float32)]  # so that zero rows can be concatenated, too
        for start in range(0, len(inputs.ids), ROWS_AT_ONCE):
            block = ModelInputs(*(tf.constant(matrix[start : start + ROWS_AT_ONCE]) for matrix in inputs))
            blocks.append(forward(block).numpy())
        logits = np.concatenate(blocks)
        numbers = None if self._score is None else self._score.numbers(numerical)
        return np.concatenate([*predicted(self._tasks, self._score, logits, numbers).values()], axis=1)


def _as_lists(name: str, values: Values, read: Callable[[Values], np.ndarray]) -> Lists:
    """Convert lists of ids or numbers, [rows], to [rows, 1] lists; `read` checks and converts their items."""
    lists = as_lists(name, values)
    _check_known(name, np.array([entry is not None for entry in lists], bool))
    lengths = np.fromiter((len(entry) for entry in lists), np.int32, len(lists))
    items = [np.asarray(entry) for entry in lists if len(entry)]
    return Lists(read(np.concatenate(items) if items else np.empty(0, np.int32)), lengths[:, np.newaxis])


def _check_lengths(lists: Mapping[str, Lists], first: str, second: str, why: str) -> None:
    """Raise a DataError if the lists of two columns that are given differ in length in a row."""
    if first not in lists and second not in lists:
        return
    lengths, others = lists[first].lengths, lists[second].lengths
    differs = np.flatnonzero(lengths != others)
    if len(differs):
        row = int(differs[0])
        raise DataError(
            f"column {second!r} has {others[row, 0]} items in row {row}, and {first!r} has {lengths[row, 0]}; {why}"
        )


def _check_dimension(vector: VectorInput, lists: Lists) -> None:
    wrong = np.flatnonzero(lists.lengths != vector.dimension)
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"column {vector.name!r} has {lists.lengths[row, 0]} numbers in row {row}; expected a vector of "
            f"{vector.dimension}"
        )


def _ids(columns: CategoricalInput, values: Values) -> np.ndarray:
    """Check that ids lie within the embedding table and return them as [n] int32."""
    ids = as_keys(columns.name, values)
    wrong = ids if ids.dtype == object else ids[(ids >= columns.cardinality) | (ids < 0)]
    if len(wrong):
        raise DataError(
            f"column {columns.name!r} holds the id {wrong.tolist()[0]!r}; encoded ids lie in [0, {columns.cardinality})"
        )
    return ids.astype(np.int32)


def _numbers(name: str, values: Values) -> np.ndarray:
    """Check numbers and convert them to [n] float32."""
    numbers = as_numbers(name, values)
    _check_known(name, ~np.isnan(numbers))
    wrong = numbers[np.abs(numbers) > np.finfo(np.float32).max]
    if len(wrong):
        raise DataError(f"column {name!r} holds {wrong[0]:g}, which is beyond float32")
    return numbers.astype(np.float32)


def _check_known(name: str, known: np.ndarray) -> None:
    if not known.all():
        raise DataError(f"column {name!r} is null in row {int(known.argmin())}; encoded rows have no nulls")
